/* Which of the chat formats a model's template writes. Templates are programs in a language that is
 * not run here; the two published ones are known by the heads of their turns. */
#include <string.h>

#include "text/tokenizer.h"

static const char BEGIN_OF_DOCUMENT[] = "<begin_of_document>";

static bool has(const char *text, size_t bytes, const char *part)
{
    size_t n = strlen(part);
    const char *end = text + bytes;
    while ((size_t)(end - text) >= n) {
        const char *at = memchr(text, part[0], (size_t)(end - text) - n + 1);
        if (!at)
            return false;
        if (memcmp(at, part, n) == 0)
            return true;
        text = at + 1;
    }
    return false;
}

ful_chat_format chat_template_format(const char *text, size_t bytes)
{
    static const char *const both[] = {"<beginning_of_sentence>system ai_setting=assistant",
                                       "<beginning_of_sentence>user name=user",
                                       "<beginning_of_sentence>ai name=assistant",
                                       "<end_of_sentence>"};
    for (size_t i = 0; i < sizeof both / sizeof both[0]; i++)
        if (!has(text, bytes, both[i]))
            return 0;
    bool m1 = has(text, bytes, BEGIN_OF_DOCUMENT);
    if (has(text, bytes, m1 ? "function_setting=" : "tool_setting="))
        return 0;
    return m1 ? FUL_CHAT_M1 : FUL_CHAT_TEXT_01;
}

ful_chat_format ful_tokenizer_chat_format(const ful_tokenizer *t, ful_chat_template *chat_template)
{
    if (chat_template)
        *chat_template =
            t->has_template ? t->template_format ? FUL_CHAT_TEMPLATE_KNOWN : FUL_CHAT_TEMPLATE_OTHER
                            : FUL_CHAT_TEMPLATE_NONE;
    if (t->template_format)
        return t->template_format;
    return ful_tokenizer_token_id(t, BEGIN_OF_DOCUMENT, sizeof BEGIN_OF_DOCUMENT - 1) >= 0
               ? FUL_CHAT_M1
               : FUL_CHAT_TEXT_01;
}
