/* Loads the demo model on an imagined device (devices.txt) and goes through a prompt and some
 * tokens: every allocation, upload, pipeline, recording and submission of a real run. Nothing is
 * computed, so what is looked at is that no call fails and that the validation layer, if it is
 * there, reports nothing.
 *
 *   vendors_run DEVICE MODEL */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "fulgur/device.h"
#include "fulgur/model.h"
#include "fulgur/session.h"

/* More rows than the kernels for few take, and a rest. */
enum { PROMPT_TOKENS = 133, CONTEXT_TOKENS = 512, DRAWN_TOKENS = 3 };

static void log_line(void *ctx, ful_log_level level, const char *message)
{
    (void)ctx;
    (void)level;
    fprintf(stderr, "%s\n", message);
}

static void check(ful_result r, const char *what)
{
    if (r == FUL_OK)
        return;
    fprintf(stderr, "vendors_run: %s: %s\n", what, ful_last_error());
    exit(1);
}

static bool take_token(void *ctx, int32_t token)
{
    (void)ctx;
    (void)token;
    return true;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fputs("Usage: vendors_run DEVICE MODEL\n", stderr);
        return 2;
    }
    ful_instance *instance = NULL;
    ful_device *device = NULL;
    ful_model *model = NULL;
    ful_session *session = NULL;
    check(ful_instance_create(&instance,
                              ful_instance_params(.log = log_line, .log_level = FUL_LOG_WARNING)),
          "instance");
    check(ful_device_open(&device, instance,
                          ful_device_params(.cache_dir = "", .selftest = FUL_SELFTEST_NEVER)),
          "device");
    const ful_device_info *info = ful_device_get_info(device);
    printf("%s: %s (%s)\n", argv[1], info->name, info->driver);
    if (info->kind == FUL_DEVICE_CPU) {
        fputs("vendors_run: this is a software driver\n", stderr);
        return 1;
    }
    check(ful_model_load(&model, device, argv[2], NULL, NULL, NULL), "model");
    check(ful_session_create(&session, model, ful_session_params(.max_tokens = CONTEXT_TOKENS)),
          "session");
    int32_t prompt[PROMPT_TOKENS];
    for (int i = 0; i < PROMPT_TOKENS; i++)
        prompt[i] = i + 1;
    check(ful_prefill(session, prompt, PROMPT_TOKENS), "prompt");
    check(ful_decode(session, 1), "token");
    const float *logits;
    size_t n;
    check(ful_logits(session, &logits, &n), "logits");
    ful_stop stop;
    check(ful_generate(
              session,
              ful_generate_params(.max_tokens = DRAWN_TOKENS,
                                  .sampler = ful_sampler_params(.temperature = 0.7f, .seed = 1)),
              take_token, NULL, &stop),
          "drawn tokens");
    uint64_t now_bytes, peak_bytes;
    ful_device_memory(device, &now_bytes, &peak_bytes);
    size_t tokens = ful_session_tokens(session, NULL);
    ful_session_destroy(&session);
    ful_model_destroy(&model);
    ful_device_close(&device);
    uint64_t errors = ful_instance_validation_errors(instance);
    ful_instance_destroy(&instance);
    printf("%zu tokens, %" PRIu64 " MiB at most, %" PRIu64 " validation errors\n", tokens,
           peak_bytes >> 20, errors);
    return errors != 0 || tokens != PROMPT_TOKENS + 1 + DRAWN_TOKENS;
}
