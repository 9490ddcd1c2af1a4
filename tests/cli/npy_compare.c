/* Reads what `fulgur logits` writes.
 *
 *   npy_compare shape A.npy            prints "ROWS COLUMNS"
 *   npy_compare files A.npy B.npy      prints max|a - b| / max|b|
 *   npy_compare ids FOLDER N           prints the N token ids of the golden in FOLDER, one a line
 *   npy_compare golden FOLDER N A.npy  prints the error of A.npy against that golden's logits
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "format/tensors.h"
#include "util/compare.h"

typedef struct npy {
    size_t rows, columns;
    float *values;
} npy;

static void die(const char *path, const char *why)
{
    fprintf(stderr, "npy_compare: %s: %s\n", path, why);
    exit(2);
}

/* Strict: exactly the header that NumPy writes for such an array, and exactly its data behind it.
 */
static npy read_npy(const char *path)
{
    FILE *f = fopen(path, "rb");
    unsigned char head[10];
    char text[65536] = "", wanted[256];
    npy n = {0};
    if (!f || fread(head, 1, sizeof head, f) != sizeof head)
        die(path, "no header");
    if (memcmp(head, "\x93NUMPY\x01\x00", 8) != 0)
        die(path, "no NumPy magic of version 1.0");
    size_t bytes = head[8] | (size_t)head[9] << 8;
    if ((bytes + sizeof head) % 64 || bytes >= sizeof text || fread(text, 1, bytes, f) != bytes)
        die(path, "header is cut or not padded to 64 bytes");
    const char *shape = strstr(text, "'shape': (");
    if (!shape || sscanf(shape, "'shape': (%zu, %zu)", &n.rows, &n.columns) != 2)
        die(path, "no shape of two dimensions");
    int used = snprintf(wanted, sizeof wanted,
                        "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", n.rows,
                        n.columns);
    if (strncmp(text, wanted, (size_t)used) != 0 || text[bytes - 1] != '\n' ||
        strspn(text + used, " ") + (size_t)used != bytes - 1)
        die(path, "header is not as NumPy writes it");
    size_t count = n.rows * n.columns;
    n.values = malloc((count + 1) * sizeof *n.values);
    if (!n.values || fread(n.values, sizeof *n.values, count, f) != count || fgetc(f) != EOF)
        die(path, "data is shorter or longer than the shape says");
    fclose(f);
    return n;
}

static const tensor_info *find(const tensor_file *file, const char *folder, const char *kind,
                               const char *tokens)
{
    char name[64];
    snprintf(name, sizeof name, "%s_%s", kind, tokens);
    const tensor_info *t = tensor_file_find(file, name);
    if (!t)
        die(folder, "the golden has no such length");
    return t;
}

static int print_ids(const tensor_file *file, const char *folder, const char *tokens)
{
    const tensor_info *t = find(file, folder, "ids", tokens);
    for (uint64_t i = 0; i < t->dims[0]; i++) {
        int32_t id;
        memcpy(&id, t->data + 4 * i, 4);
        printf("%d\n", id);
    }
    return 0;
}

/* Goldens of more than 65 tokens hold three rows: the first, the middle and the last one. */
static int compare_golden(const tensor_file *file, const char *folder, const char *tokens,
                          const char *path)
{
    const tensor_info *t = find(file, folder, "logits", tokens);
    npy a = read_npy(path);
    size_t columns = (size_t)t->dims[1], kept = (size_t)t->dims[0];
    size_t picked[3] = {0, a.rows / 2, a.rows - 1};
    if (a.columns != columns || a.rows != (size_t)strtoul(tokens, NULL, 10) ||
        (kept != a.rows && kept != 3))
        die(path, "its shape is not the golden's");
    float *golden = malloc(kept * columns * sizeof *golden);
    float *mine = malloc(kept * columns * sizeof *mine);
    if (!golden || !mine)
        die(path, "out of memory");
    memcpy(golden, t->data, kept * columns * sizeof *golden);
    for (size_t i = 0; i < kept; i++)
        memcpy(mine + i * columns, a.values + (kept == a.rows ? i : picked[i]) * columns,
               columns * sizeof *mine);
    printf("%.3e\n", max_rel_error_ff(mine, golden, kept * columns));
    free(golden);
    free(mine);
    free(a.values);
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 2 ? argv[1] : "";
    if (strcmp(what, "shape") == 0) {
        npy a = read_npy(argv[2]);
        printf("%zu %zu\n", a.rows, a.columns);
        free(a.values);
        return 0;
    }
    if (strcmp(what, "files") == 0 && argc == 4) {
        npy a = read_npy(argv[2]), b = read_npy(argv[3]);
        if (a.rows != b.rows || a.columns != b.columns)
            die(argv[2], "the shapes differ");
        printf("%.3e\n", max_rel_error_ff(a.values, b.values, a.rows * a.columns));
        free(a.values);
        free(b.values);
        return 0;
    }
    if (argc < 4) {
        fprintf(stderr, "usage: npy_compare shape|files|ids|golden ...\n");
        return 2;
    }
    char path[4096];
    snprintf(path, sizeof path, "%s/golden.safetensors", argv[2]);
    ful_alloc memory = mem_functions(NULL);
    tensor_file *file;
    if (tensor_file_open(&memory, path, &file) != FUL_OK)
        die(path, ful_last_error());
    int code = 2;
    if (strcmp(what, "ids") == 0)
        code = print_ids(file, argv[2], argv[3]);
    else if (strcmp(what, "golden") == 0 && argc == 5)
        code = compare_golden(file, argv[2], argv[3], argv[4]);
    tensor_file_close(&file);
    return code;
}
