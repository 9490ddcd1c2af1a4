/* Encodes strings for tokenizer_oracle.py.
 *
 * encode_main TOKENIZER [added]: each request on stdin is the size of a text in
 * bytes (32-bit little-endian) and the text. Each answer on stdout is the
 * number of tokens, the tokens (32-bit), the number of bytes they decode to and
 * the bytes; text that can't be encoded gives 0xFFFFFFFF and the result code.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "text/tokenizer.h"

static uint32_t word_get(const unsigned char b[4])
{
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static void word_put(uint32_t word)
{
    unsigned char b[4] = {(unsigned char)word, (unsigned char)(word >> 8),
                          (unsigned char)(word >> 16), (unsigned char)(word >> 24)};
    fwrite(b, 1, sizeof b, stdout);
}

static int encode_failed(ful_result result)
{
    fprintf(stderr, "%s: %s\n", ful_result_name(result), ful_last_error());
    word_put(UINT32_MAX);
    word_put((uint32_t)(int32_t)result);
    return 0;
}

static int request_answer(const ful_tokenizer *t, const char *text, uint32_t bytes, uint32_t flags)
{
    size_t count = 0, decoded = 0;
    ful_result result = ful_tokenizer_encode(t, text, bytes, flags, NULL, &count);
    if (result != FUL_OK)
        return encode_failed(result);
    int32_t *tokens = malloc(count * sizeof *tokens + 1);
    if (tokens == NULL)
        return 1;
    result = ful_tokenizer_encode(t, text, bytes, flags, tokens, &count);
    if (result == FUL_OK)
        result = ful_tokenizer_decode(t, tokens, count, FUL_DECODE_ALL, NULL, &decoded);
    char *back = malloc(decoded + 1);
    if (result == FUL_OK && back != NULL)
        result = ful_tokenizer_decode(t, tokens, count, FUL_DECODE_ALL, back, &decoded);
    int status = back == NULL;
    if (status == 0 && result != FUL_OK) {
        status = encode_failed(result);
    } else if (status == 0) {
        word_put((uint32_t)count);
        for (size_t i = 0; i < count; i++)
            word_put((uint32_t)tokens[i]);
        word_put((uint32_t)decoded);
        fwrite(back, 1, decoded, stdout);
    }
    free(tokens);
    free(back);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3 || (argc == 3 && strcmp(argv[2], "added") != 0)) {
        fprintf(stderr, "usage: %s TOKENIZER [added]\n", argv[0]);
        return 2;
    }
    ful_tokenizer *t = NULL;
    if (tokenizer_create(&t, NULL, argv[1]) != FUL_OK) {
        fprintf(stderr, "%s\n", ful_last_error());
        return 1;
    }
    unsigned char head[4];
    int status = 0;
    while (status == 0 && fread(head, 1, sizeof head, stdin) == sizeof head) {
        uint32_t bytes = word_get(head);
        char *text = malloc((size_t)bytes + 1);
        status = text == NULL || fread(text, 1, bytes, stdin) != bytes;
        if (status == 0)
            status =
                request_answer(t, text, bytes, argc == 3 ? FUL_ENCODE_ADDED : FUL_ENCODE_PLAIN);
        free(text);
    }
    ful_tokenizer_destroy(&t);
    return status;
}
