#include <string.h>

#include "fulgur/tokenizer.h"
#include "text/unicode.h"

static const char replacement[3] = {'\xEF', '\xBF', '\xBD'}; /* U+FFFD */

/* Bytes a sequence with this first byte has; 0 if none starts so. */
static uint32_t sequence_bytes(uint8_t first)
{
    return first < 0x80   ? 1u
           : first < 0xC2 ? 0u
           : first < 0xE0 ? 2u
           : first < 0xF0 ? 3u
           : first < 0xF5 ? 4u
                          : 0u;
}

/* True if `next` can stand behind the n bytes held, which are the start of a sequence. */
static bool sequence_goes_on(const uint8_t *held, uint32_t n, uint8_t next)
{
    uint8_t low = 0x80, high = 0xBF;
    if (n == 1) {
        low = held[0] == 0xE0 ? 0xA0 : held[0] == 0xF0 ? 0x90 : 0x80;
        high = held[0] == 0xED ? 0x9F : held[0] == 0xF4 ? 0x8F : 0xBF;
    }
    return next >= low && next <= high;
}

size_t ful_utf8_stream_push(ful_utf8_stream *stream, const char *in, size_t bytes, char *out)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint8_t byte = (uint8_t)in[i];
        if (stream->held_bytes > 0 && !sequence_goes_on(stream->held, stream->held_bytes, byte)) {
            n += ful_utf8_stream_finish(stream, out + n); /* it can't be completed any more */
        }
        if (stream->held_bytes == 0 && sequence_bytes(byte) == 0) {
            memcpy(out + n, replacement, sizeof replacement);
            n += sizeof replacement;
            continue;
        }
        stream->held[stream->held_bytes++] = byte;
        if (stream->held_bytes == sequence_bytes(stream->held[0])) {
            memcpy(out + n, stream->held, stream->held_bytes);
            n += stream->held_bytes;
            stream->held_bytes = 0;
        }
    }
    return n;
}

size_t ful_utf8_stream_finish(ful_utf8_stream *stream, char *out)
{
    if (stream->held_bytes == 0)
        return 0;
    stream->held_bytes = 0;
    memcpy(out, replacement, sizeof replacement);
    return sizeof replacement;
}
