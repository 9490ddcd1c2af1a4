/* Continues a prompt: from files to text in one page.  generate MODEL "Once upon a time" */
#include <stdio.h>
#include <string.h>

#include <fulgur/session.h>
#include <fulgur/tokenizer.h>

enum { MAX_PROMPT_TOKENS = 1024 };

static bool print_token(void *ctx, int32_t token)
{
    size_t bytes;
    const char *text = ful_tokenizer_token_bytes(ctx, token, &bytes);
    if (text)
        fwrite(text, 1, bytes, stdout);
    return fflush(stdout) == 0;
}

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: generate MODEL PROMPT\n");
        return 2;
    }
    ful_instance *instance = NULL;
    ful_device *device = NULL;
    ful_model *model = NULL;
    ful_session *session = NULL;
    ful_tokenizer *tokenizer = NULL;
    int32_t tokens[1 + MAX_PROMPT_TOKENS];
    size_t n = MAX_PROMPT_TOKENS;

    ful_result r = ful_instance_create(&instance, NULL);
    if (r == FUL_OK)
        r = ful_device_open(&device, instance, NULL);
    if (r == FUL_OK)
        r = ful_tokenizer_load(&tokenizer, instance, argv[1]);
    if (r == FUL_OK)
        r = ful_model_load(&model, device, argv[1], NULL, NULL, NULL);
    if (r == FUL_OK)
        r = ful_session_create(&session, model, NULL);
    if (r == FUL_OK)
        r = ful_tokenizer_encode(tokenizer, argv[2], strlen(argv[2]), FUL_ENCODE_PLAIN, tokens + 1,
                                 &n);
    if (r == FUL_OK) {
        /* Models that name a begin token expect it in front of everything. */
        tokens[0] = ful_model_get_info(model)->bos_token_id;
        size_t skip = tokens[0] < 0;
        r = ful_prefill(session, tokens + skip, n + 1 - skip);
    }
    if (r == FUL_OK) {
        printf("%s", argv[2]);
        const ful_sampler_params *sampler =
            ful_sampler_params(.seed = 7, .temperature = 0.7f, .top_p = 0.9f);
        r = ful_generate(session, ful_generate_params(.max_tokens = 200, .sampler = sampler),
                         print_token, tokenizer, NULL);
        printf("\n");
    }
    if (r != FUL_OK)
        fprintf(stderr, "%s: %s\n", ful_result_name(r), ful_last_error());

    ful_session_destroy(&session);
    ful_model_destroy(&model);
    ful_tokenizer_destroy(&tokenizer);
    ful_device_close(&device);
    ful_instance_destroy(&instance);
    return r != FUL_OK;
}
