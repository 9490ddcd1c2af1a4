#include "base/utf8.h"

#include <stdint.h>
#include <string.h>

bool utf8_valid(const char *text, size_t bytes, size_t *offset)
{
    const uint8_t *t = (const uint8_t *)text;
    size_t i = 0;
    while (i < bytes) {
        if (bytes - i >= 8) { /* eight ASCII bytes at a time */
            uint64_t word;
            memcpy(&word, t + i, 8);
            if ((word & UINT64_C(0x8080808080808080)) == 0) {
                i += 8;
                continue;
            }
        }
        uint8_t b = t[i];
        size_t n = b < 0x80 ? 1 : b < 0xC2 ? 0 : b < 0xE0 ? 2 : b < 0xF0 ? 3 : b < 0xF5 ? 4 : 0;
        bool good = n != 0 && n <= bytes - i;
        if (good && n > 1) {
            /* The second byte excludes overlong forms, surrogates and values past
             * U+10FFFF. */
            uint8_t low = b == 0xE0 ? 0xA0 : b == 0xF0 ? 0x90 : 0x80;
            uint8_t high = b == 0xED ? 0x9F : b == 0xF4 ? 0x8F : 0xBF;
            good = t[i + 1] >= low && t[i + 1] <= high;
            for (size_t k = 2; good && k < n; k++)
                good = (t[i + k] & 0xC0) == 0x80;
        }
        if (!good) {
            *offset = i;
            return false;
        }
        i += n;
    }
    return true;
}
