#include "text/pretokenize.h"

#include <string.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

struct splitter {
    const ful_alloc *alloc;
    pcre2_general_context *context;
    pcre2_match_context *limits;
    pcre2_code *code;
    bool keep_gaps;
};

struct splitter_match {
    const ful_alloc *alloc;
    pcre2_match_data *data;
    size_t pending_end; /* with keep_gaps: end of the match behind the gap just
                           given out, or 0 */
};

static void *regex_malloc(size_t bytes, void *ctx)
{
    return mem_alloc(ctx, bytes);
}

static void regex_free(void *p, void *ctx)
{
    mem_free(ctx, p);
}

/* Unicode's White_Space, as the reference's \s: PCRE2's own has U+180E besides. */
#define WHITE_SPACE                                                                                \
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}"                      \
    "\\x{2029}\\x{202f}"                                                                           \
    "\\x{205f}\\x{3000}"

static ful_result pattern_refuse(size_t offset, const char *what)
{
    return fail(FUL_ERR_UNSUPPORTED, "Split regex: %s at byte %zu is not supported", what, offset);
}

/* Escapes that mean the same in both dialects. */
static bool escape_is_common(char c)
{
    return c == 'r' || c == 'n' || c == 't' || c == 'p' || c == 'P' || (c > ' ' && c < '0') ||
           (c > '9' && c < 'A' && c != '<' && c != '>') || (c > 'Z' && c < 'a' && c != '`') ||
           (c > 'z' && c < 0x7F);
}

/* The pattern as PCRE2 gets it, from mem_alloc: \s and \S are spelled out. */
static ful_result pattern_translate(const ful_alloc *alloc, const char *pattern, size_t bytes,
                                    char **out)
{
    /* The longest replacement of a two-byte escape bounds the result. */
    size_t room = bytes / 2 * (sizeof WHITE_SPACE + 4) + bytes + 1;
    char *text = bytes < 65536 ? mem_alloc(alloc, room) : NULL;
    if (text == NULL)
        return bytes < 65536
                   ? mem_fail(room, "the Split regex")
                   : fail(FUL_ERR_UNSUPPORTED, "Split regex of %zu bytes; at most 65535", bytes);
    size_t n = 0;
    bool in_class = false;
    ful_result result = FUL_OK;
    for (size_t i = 0; i < bytes && result == FUL_OK; i++) {
        char c = pattern[i], next = i + 1 < bytes ? pattern[i + 1] : '\0';
        if (c == '\0') {
            result = pattern_refuse(i, "a zero byte");
        } else if (c == '\\' && (next == 's' || (next == 'S' && !in_class))) {
            const char *put = in_class      ? WHITE_SPACE
                              : next == 's' ? "[" WHITE_SPACE "]"
                                            : "[^" WHITE_SPACE "]";
            memcpy(text + n, put, strlen(put));
            n += strlen(put);
            i++;
        } else if (c == '\\') {
            char what[16] = {'e', 's', 'c', 'a', 'p', 'e', ' ', '\\', next, '\0'};
            if (!escape_is_common(next))
                result = pattern_refuse(i, what);
            text[n++] = c;
            text[n++] = next;
            i++;
        } else if (in_class) {
            if (c == '[')
                result = pattern_refuse(i, "'[' within a character class");
            else if (c == '&' && next == '&')
                result = pattern_refuse(i, "'&&' within a character class");
            else if (c == ']')
                in_class = false;
            text[n++] = c;
        } else {
            if (c == '^' || c == '$')
                result = pattern_refuse(i, "an anchor");
            else if (c == '}' && next == '+')
                result = pattern_refuse(i, "'}+'");
            else if (c == '(' && next == '?' && i + 2 < bytes &&
                     strchr(":=!i", pattern[i + 2]) == NULL)
                result = pattern_refuse(i, "this kind of group");
            text[n++] = c;
            if (c == '[') {
                in_class = true;
                if (next == '^') {
                    text[n++] = next;
                    i++;
                }
                if (i + 1 < bytes && pattern[i + 1] == ']')
                    result = pattern_refuse(i + 1, "']' at the start of a character class");
            }
        }
    }
    if (result != FUL_OK) {
        mem_free(alloc, text);
        return result;
    }
    text[n] = '\0';
    *out = text;
    return FUL_OK;
}

static ful_result out_of_memory(const char *what)
{
    return fail(FUL_ERR_HOST_MEMORY, "out of host memory for %s", what);
}

static ful_result splitter_compile(splitter *s, const char *pattern)
{
    union {
        const ful_alloc *in;
        void *out;
    } ctx = {.in = s->alloc}; /* PCRE2's contexts drop the const */
    s->context = pcre2_general_context_create(regex_malloc, regex_free, ctx.out);
    s->limits = s->context ? pcre2_match_context_create(s->context) : NULL;
    pcre2_compile_context *compile = s->limits ? pcre2_compile_context_create(s->context) : NULL;
    if (compile == NULL)
        return out_of_memory("the Split regex");
    int error = 0;
    PCRE2_SIZE offset = 0;
    s->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                            &error, &offset, compile);
    pcre2_compile_context_free(compile);
    if (s->code == NULL) {
        if (error == PCRE2_ERROR_HEAP_FAILED)
            return out_of_memory("the Split regex");
        char message[120] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)message, sizeof message);
        return fail(FUL_ERR_UNSUPPORTED, "Split regex: %s (at byte %zu of it as translated)",
                    message, (size_t)offset);
    }
    uint32_t may_be_empty = 0;
    if (pcre2_pattern_info(s->code, PCRE2_INFO_MATCHEMPTY, &may_be_empty) != 0 || may_be_empty)
        return fail(FUL_ERR_UNSUPPORTED, "Split regex: it can match the empty text");
    pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE); /* without it matching is only slower */
    /* The limits guard against patterns that backtrack without end; long runs of one kind of
     * character need more steps than their default. */
    pcre2_set_match_limit(s->limits, UINT32_MAX);
    pcre2_set_depth_limit(s->limits, UINT32_MAX);
    return FUL_OK;
}

ful_result splitter_create(const ful_alloc *alloc, const char *pattern, size_t bytes,
                           bool keep_gaps, splitter **out)
{
    *out = NULL;
    char *translated = NULL;
    TRY(pattern_translate(alloc, pattern, bytes, &translated));
    splitter *s = mem_zalloc(alloc, 1, sizeof *s);
    ful_result result = s ? FUL_OK : mem_fail(sizeof *s, "the Split regex");
    if (s != NULL) {
        s->alloc = alloc;
        s->keep_gaps = keep_gaps;
        result = splitter_compile(s, translated);
    }
    mem_free(alloc, translated);
    if (result != FUL_OK)
        splitter_destroy(&s);
    *out = s;
    return result;
}

void splitter_destroy(splitter **p)
{
    splitter *s = *p;
    *p = NULL;
    if (s == NULL)
        return;
    pcre2_code_free(s->code);
    pcre2_match_context_free(s->limits);
    pcre2_general_context_free(s->context);
    mem_free(s->alloc, s);
}

ful_result splitter_match_create(const splitter *s, splitter_match **out)
{
    splitter_match *match = mem_zalloc(s->alloc, 1, sizeof *match);
    if (match != NULL) {
        match->alloc = s->alloc;
        match->data = pcre2_match_data_create(1, s->context);
        if (match->data == NULL)
            splitter_match_destroy(&match);
    }
    *out = match;
    return match ? FUL_OK : mem_fail(sizeof *match, "the Split regex's matches");
}

void splitter_match_destroy(splitter_match **p)
{
    splitter_match *match = *p;
    *p = NULL;
    if (match == NULL)
        return;
    pcre2_match_data_free(match->data);
    mem_free(match->alloc, match);
}

ful_result splitter_next(const splitter *s, splitter_match *match, const char *text, size_t bytes,
                         size_t *at, size_t *start, size_t *end)
{
    if (match->pending_end != 0) { /* the gap before this match was given out at the last call */
        *start = *at;
        *end = *at = match->pending_end;
        match->pending_end = 0;
        return FUL_OK;
    }
    *start = *end = bytes;
    if (*at >= bytes)
        return FUL_OK;
    int found = pcre2_match(s->code, (PCRE2_SPTR)text, bytes, *at, PCRE2_NO_UTF_CHECK, match->data,
                            s->limits);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) /* the interpreter's stack is the heap */
        found = pcre2_match(s->code, (PCRE2_SPTR)text, bytes, *at,
                            PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match->data, s->limits);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH) {
        if (found == PCRE2_ERROR_NOMEMORY || found == PCRE2_ERROR_HEAPLIMIT)
            return out_of_memory("the Split regex's backtracking");
        char message[120] = "";
        pcre2_get_error_message(found, (PCRE2_UCHAR *)message, sizeof message);
        return fail(FUL_ERR_UNSUPPORTED, "Split regex at byte %zu of the text: %s", *at, message);
    }
    size_t from = bytes, to = bytes;
    if (found >= 0) {
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(match->data);
        from = span[0];
        to = span[1];
    }
    if (s->keep_gaps && from > *at) {
        *start = *at;
        *end = *at = from;
        match->pending_end = found >= 0 ? to : 0;
        return FUL_OK;
    }
    *start = from;
    *end = *at = to;
    return FUL_OK;
}
