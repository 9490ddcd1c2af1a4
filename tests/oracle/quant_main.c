/* Codes blocks for quant_oracle.py.
 *
 * quant_main decode TYPE COLS: rows of blocks on stdin, rows of floats on stdout.
 * quant_main device TYPE COLS: the same, by way of the device's planes.
 * quant_main encode TYPE COLS [weighted]: rows of floats on stdin, rows of blocks on stdout;
 * weighted: the first row is the columns' importance. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/quant.h"

static ful_type type_named(const char *name)
{
    for (int i = FUL_TYPE_DEFAULT + 1; i < TYPE_COUNT; i++) {
        if (strcmp(ful_type_name((ful_type)i), name) == 0)
            return (ful_type)i;
    }
    return FUL_TYPE_DEFAULT;
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    const ful_type type = type_named(argv[2]);
    const uint64_t cols = strtoull(argv[3], NULL, 10), bytes = type_row_bytes(type, cols);
    if (bytes == 0)
        return 2;
    const bool encode = strcmp(argv[1], "encode") == 0, device = strcmp(argv[1], "device") == 0;
    float *floats = malloc(cols * sizeof *floats), *importance = NULL;
    uint8_t *blocks = malloc(bytes), *planes = malloc(type_device_row_bytes(type, cols) + 1);
    if (argc > 4)
        importance = malloc(cols * sizeof *importance);
    if (!floats || !blocks || !planes || (argc > 4 && !importance))
        return 2;
    if (importance && fread(importance, sizeof *importance, cols, stdin) != cols)
        return 2;
    while (fread(encode ? (void *)floats : blocks, encode ? cols * sizeof *floats : bytes, 1,
                 stdin) == 1) {
        if (encode) {
            row_from_floats(type, floats, cols, importance, blocks);
            fwrite(blocks, bytes, 1, stdout);
            continue;
        }
        if (device && type_is_blocks(type)) {
            quant_to_device(type, blocks, cols, planes);
            quant_decode_device(type, planes, cols, floats);
        } else {
            row_to_floats(type, blocks, cols, floats);
        }
        fwrite(floats, sizeof *floats, cols, stdout);
    }
    free(importance);
    free(planes);
    free(blocks);
    free(floats);
    return 0;
}
