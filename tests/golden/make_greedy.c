/* Writes greedy.txt: what the demo model says to four prompts when the reference, in double
 * precision, always takes the most likely token.
 *
 * make_greedy MODEL > greedy.txt (target make_greedy; MODEL: samples/demo-model). For each prompt
 * the line "prompt N" and its N tokens, "greedy STEPS", then one line a step: the token, its margin
 * (logit less that of the next best) and the smallest router gap of all tokens since the previous
 * step (ref_trace_min_gap). Lines that begin with # are for people. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fulgur/tokenizer.h"
#include "ref/ref_model.h"
#include "util/compare.h"

enum { STEPS = 128 };

/* The beginning of a tale, talk, numbers, and a page longer than the chunks that some devices take.
 */
static const char *const prompts[] = {
    "Once upon a time there was a king who had three daughters",
    "\"Where are you going with that basket?\" asked the fox.\n\n\"",
    "Max the dog had 10 red balls and 1 blue ball. One",
    "The village stood at the foot of a mountain, and nobody who lived there had ever been to the "
    "top. Every spring the children asked what was up there, and every spring the old people shook "
    "their heads and said that there was nothing but stones and wind. But Nandi had seen a light. "
    "It was small and yellow, like a lamp in a window, and it came on when the sun went down and "
    "was gone before the cocks crew. She told her brother, who laughed. She told her grandmother, "
    "who did not laugh at all, but put down her sewing and looked at the fire for a long time. "
    "\"I saw it too,\" she said at last, \"when I was as small as you are. Take your coat, and "
    "some "
    "bread, and do not",
};

static ful_tokenizer *tokenizer;

static bool ok(ful_result result)
{
    if (result != FUL_OK)
        fprintf(stderr, "make_greedy: %s\n", ful_last_error());
    return result == FUL_OK;
}

/* The tokens as a C string would hold their text. */
static void print_text(const int32_t *tokens, size_t count)
{
    fputs("# ", stdout);
    for (size_t i = 0; i < count; i++) {
        size_t bytes;
        const char *text = ful_tokenizer_token_bytes(tokenizer, tokens[i], &bytes);
        for (size_t b = 0; b < bytes; b++) {
            if (text[b] == '\n')
                fputs("\\n", stdout);
            else
                putchar(text[b]);
        }
    }
    putchar('\n');
}

static double margin_of(const double *logits, size_t n, size_t top)
{
    double next = -INFINITY;
    for (size_t i = 0; i < n; i++)
        if (i != top && logits[i] > next)
            next = logits[i];
    return logits[top] - next;
}

static double gap_of(const ref_trace *trace)
{
    double least = INFINITY;
    for (uint32_t row = 0; row < trace->T; row++)
        least = fmin(least, ref_trace_min_gap(trace, row));
    return least;
}

static bool print_greedy(const ref_model *model, const char *prompt)
{
    int32_t ids[512], chosen[STEPS];
    size_t count = sizeof ids / sizeof *ids, vocab = model->config.vocab_size;
    double margins[STEPS], gaps[STEPS];
    if (!ok(ful_tokenizer_encode(tokenizer, prompt, strlen(prompt), 0, ids, &count)))
        return false;
    ref_state *state = ref_state_create(model);
    ref_trace *trace = ref_forward(model, state, ids, (uint32_t)count);
    for (size_t i = 0; i < STEPS; i++) {
        const double *last = trace->logits + (trace->T - 1) * vocab;
        size_t top = argmax(last, vocab);
        chosen[i] = (int32_t)top;
        margins[i] = margin_of(last, vocab, top);
        gaps[i] = gap_of(trace);
        ref_trace_destroy(&trace);
        trace = ref_forward(model, state, &chosen[i], 1);
        if (ful_tokenizer_is_added(tokenizer, chosen[i])) {
            fprintf(stderr, "make_greedy: the text after \"%s\" ends at step %zu\n", prompt, i);
            ref_trace_destroy(&trace);
            ref_state_destroy(&state);
            return false;
        }
    }
    ref_trace_destroy(&trace);
    ref_state_destroy(&state);
    printf("\nprompt %zu\n", count);
    print_text(ids, count);
    for (size_t i = 0; i < count; i++)
        printf("%d%c", ids[i], i % 16 == 15 || i + 1 == count ? '\n' : ' ');
    printf("greedy %d\n", STEPS);
    print_text(chosen, STEPS);
    for (size_t i = 0; i < STEPS; i++)
        printf("%d %.6f %.1e\n", chosen[i], margins[i], gaps[i]);
    return true;
}

int main(int argc, char **argv)
{
    ful_instance *instance = NULL;
    ref_model *model = NULL;
    if (argc != 2) {
        fputs("Usage: make_greedy MODEL > greedy.txt\n", stderr);
        return 2;
    }
    bool good = ok(ful_instance_create(&instance, NULL)) &&
                ok(ful_tokenizer_load(&tokenizer, instance, argv[1])) &&
                ok(ref_model_load(argv[1], DECAY_HF, &model));
    if (good)
        puts("# Made by make_greedy samples/demo-model > tests/golden/greedy.txt: per step the "
             "token,\n# its margin over the next best and the smallest router gap on the way.");
    for (size_t i = 0; good && i < sizeof prompts / sizeof *prompts; i++)
        good = print_greedy(model, prompts[i]);
    ref_model_destroy(&model);
    ful_tokenizer_destroy(&tokenizer);
    ful_instance_destroy(&instance);
    return good ? 0 : 1;
}
