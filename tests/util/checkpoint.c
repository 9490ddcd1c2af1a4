#include "checkpoint.h" /* before cmocka, whose fail() is a macro */
#include "util/scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void write_config(const char *source, const char *dir, const char *find, const char *replace)
{
    char path[512], *text;
    size_t bytes;
    ful_alloc a = mem_functions(NULL);
    snprintf(path, sizeof path, "%s/config.json", source);
    assert_int_equal(file_read(&a, path, 1 << 20, &text, &bytes), FUL_OK);
    snprintf(path, sizeof path, "%s/config.json", dir);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    const char *at = find ? strstr(text, find) : NULL;
    assert_true(!find || at);
    if (at)
        fprintf(out, "%.*s%s%s", (int)(at - text), text, replace, at + strlen(find));
    else
        fputs(text, out);
    fclose(out);
    mem_free(&a, text);
}

static void write_header(FILE *out, const checkpoint_tensor *tensors, uint32_t n)
{
    size_t capacity = 256 + (size_t)n * 512, at = 1;
    char *json = malloc(capacity);
    uint64_t offset = 0;
    json[0] = '{';
    for (uint32_t i = 0; i < n; i++) {
        const checkpoint_tensor *t = &tensors[i];
        if (t->drop)
            continue;
        at += (size_t)snprintf(json + at, capacity - at, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                               at > 1 ? "," : "", t->name, t->type);
        for (uint32_t d = 0; d < t->n_dims; d++)
            at += (size_t)snprintf(json + at, capacity - at, "%s%llu", d ? "," : "",
                                   (unsigned long long)t->dims[d]);
        at += (size_t)snprintf(json + at, capacity - at, "],\"data_offsets\":[%llu,%llu]}",
                               (unsigned long long)offset, (unsigned long long)(offset + t->bytes));
        offset += t->bytes;
    }
    json[at++] = '}';
    while (at % 8)
        json[at++] = ' ';
    uint64_t bytes = at; /* little-endian, as every machine the tests run on */
    assert_int_equal(fwrite(&bytes, 8, 1, out), 1);
    assert_int_equal(fwrite(json, 1, at, out), at);
    free(json);
}

void checkpoint_copy(const char *source, checkpoint_edit edit, void *ctx, const char *find,
                     const char *replace, char *dir)
{
    assert_true(scratch_make(dir, 256));
    write_config(source, dir, find, replace);
    ful_alloc a = mem_functions(NULL);
    tensor_file *file = NULL;
    assert_int_equal(tensor_file_open(&a, source, &file), FUL_OK);
    uint32_t n = tensor_file_count(file);
    checkpoint_tensor *tensors = calloc(n, sizeof *tensors);
    for (uint32_t i = 0; i < n; i++) {
        const tensor_info *t = tensor_file_at(file, i);
        checkpoint_tensor *c = &tensors[i];
        snprintf(c->name, sizeof c->name, "%s", t->name);
        snprintf(c->type, sizeof c->type, "%s", t->type_name);
        c->n_dims = t->n_dims;
        memcpy(c->dims, t->dims, sizeof c->dims);
        c->bytes = t->bytes;
        c->data = malloc(t->bytes);
        memcpy(c->data, t->data, t->bytes);
        if (edit)
            edit(ctx, c);
    }
    char path[512];
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    write_header(out, tensors, n);
    for (uint32_t i = 0; i < n; i++) {
        if (!tensors[i].drop)
            assert_int_equal(fwrite(tensors[i].data, 1, tensors[i].bytes, out), tensors[i].bytes);
        free(tensors[i].data);
    }
    fclose(out);
    free(tensors);
    tensor_file_close(&file);
}

void checkpoint_remove(const char *dir)
{
    static const char *const names[] = {"config.json", "model.safetensors"};
    char path[512];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        unlink(path);
    }
    rmdir(dir);
}

void expect_error_words(const char *first, ...)
{
    va_list args;
    va_start(args, first);
    for (const char *word = first; word; word = va_arg(args, const char *))
        if (!strstr(ful_last_error(), word))
            fail_msg("'%s' is not in the error line: %s", word, ful_last_error());
    va_end(args);
}
