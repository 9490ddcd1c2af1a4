/* fulgur inside an application: its own log, progress that can cancel, a plan checked before
 * loading, memory known beforehand, text that stops when the user wants it to.  embed_in_app MODEL
 */
#include <stdio.h>
#include <string.h>

#include <fulgur/session.h>
#include <fulgur/tokenizer.h>

typedef struct app {
    const ful_tokenizer *tokenizer;
    ful_utf8_stream stream; /* tokens may end in the middle of a letter */
    int words_left;         /* stands for the user's stop button */
} app;

static void app_log(void *ctx, ful_log_level level, const char *message)
{
    (void)ctx;
    fprintf(stderr, "[app log %d] %s\n", (int)level, message);
}

static bool app_progress(void *ctx, const ful_progress *p)
{
    (void)ctx;
    fprintf(stderr, "\rphase %d: %3.0f %%", (int)p->phase,
            100.0 * (double)p->done / (double)p->total);
    return true; /* false would cancel the load and release everything */
}

static bool app_token(void *ctx, int32_t token)
{
    app *a = ctx;
    char out[FUL_UTF8_STREAM_ROOM(256)];
    size_t bytes;
    const char *text = ful_tokenizer_token_bytes(a->tokenizer, token, &bytes);
    if (!text || bytes > 256)
        return true;
    fwrite(out, 1, ful_utf8_stream_push(&a->stream, text, bytes, out), stdout);
    a->words_left -= memchr(text, ' ', bytes) != NULL;
    return a->words_left > 0;
}

static ful_result tell(const char *path, ful_instance *instance, ful_device *device,
                       ful_tokenizer *tokenizer)
{
    ful_plan plan;
    ful_model *model = NULL;
    ful_session *session = NULL;
    app a = {.tokenizer = tokenizer, .words_left = 40};
    ful_result r =
        ful_model_plan(instance, path, device, ful_plan_params(.max_tokens = 512), &plan);
    if (r == FUL_OK) {
        printf("needs %.1f MiB, %.1f MiB are free\n", (double)plan.total_bytes / 1048576.0,
               (double)plan.available_bytes / 1048576.0);
        r = ful_model_load(&model, device, path, &plan, app_progress, NULL);
        fprintf(stderr, "\n");
    }
    if (r == FUL_OK)
        r = ful_session_create(&session, model, NULL);
    if (r == FUL_OK) {
        int32_t begin = ful_model_get_info(model)->bos_token_id;
        r = ful_prefill(session, &begin, 1);
    }
    if (r == FUL_OK)
        r = ful_generate(
            session,
            ful_generate_params(.sampler = ful_sampler_params(.seed = 3, .temperature = 0.7f,
                                                              .top_p = 0.9f)),
            app_token, &a, NULL);
    printf("\n");
    ful_session_destroy(&session);
    ful_model_destroy(&model);
    return r;
}

int main(int argc, char **argv)
{
    ful_instance *instance = NULL;
    ful_device *device = NULL;
    ful_tokenizer *tokenizer = NULL;
    if (argc != 2) {
        fprintf(stderr, "usage: embed_in_app MODEL\n");
        return 2;
    }
    ful_result r = ful_instance_create(
        &instance, ful_instance_params(.log = app_log, .app_name = "embed_in_app"));
    if (r == FUL_OK)
        r = ful_device_open(&device, instance, ful_device_params(.max_submit_ms = 50));
    if (r == FUL_OK)
        r = ful_tokenizer_load(&tokenizer, instance, argv[1]);
    if (r == FUL_OK)
        r = tell(argv[1], instance, device, tokenizer);
    if (r != FUL_OK)
        fprintf(stderr, "%s: %s\n", ful_result_name(r), ful_last_error());
    ful_tokenizer_destroy(&tokenizer);
    ful_device_close(&device);
    ful_instance_destroy(&instance);
    return r != FUL_OK;
}
