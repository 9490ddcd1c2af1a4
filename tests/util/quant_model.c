#include "quant_model.h"
#include "device_fixture.h" /* before cmocka, whose fail() is a macro */
#include "format/gguf_write.h"
#include "format/quant.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void copy_tensor(gguf_writer *w, const tensor_info *t, ful_type type, float factor,
                        bool decoded)
{
    uint64_t cols = t->dims[t->n_dims - 1], rows = 1;
    for (uint32_t d = 0; d + 1 < t->n_dims; d++)
        rows *= t->dims[d];
    uint64_t in_bytes = type_row_bytes(t->type, cols), bytes = type_row_bytes(type, cols);
    float *values = malloc(cols * sizeof *values);
    uint8_t *coded = malloc(bytes);
    for (uint64_t r = 0; r < rows; r++) {
        row_to_floats(t->type, t->data + r * in_bytes, cols, values);
        for (uint64_t i = 0; i < cols; i++)
            values[i] *= factor;
        row_from_floats(type, values, cols, NULL, coded);
        if (decoded)
            row_to_floats(type, coded, cols, values);
        EXPECT_OK(decoded ? gguf_write_data(w, values, cols * sizeof *values)
                          : gguf_write_data(w, coded, bytes));
    }
    free(values);
    free(coded);
}

void quant_model_write(const char *from, const char *to, const quant_model *model, bool decoded)
{
    tensor_file *file;
    gguf_writer *w;
    const ful_alloc a = mem_functions(NULL);
    EXPECT_OK(tensor_file_open(&a, from, &file));
    EXPECT_OK(gguf_writer_open(&a, to, &w));
    const gguf_keys *keys = tensor_file_keys(file);
    for (uint32_t i = 0; i < gguf_keys_count(keys); i++)
        gguf_put_value(w, gguf_keys_at(keys, i));
    for (uint32_t i = 0; i < tensor_file_count(file); i++) {
        const tensor_info *t = tensor_file_at(file, i);
        gguf_put_tensor(w, t->name, decoded ? FUL_TYPE_F32 : model->type(model->ctx, i, t), t->dims,
                        t->n_dims);
    }
    EXPECT_OK(gguf_write_head(w));
    for (uint32_t i = 0; i < tensor_file_count(file); i++) {
        const tensor_info *t = tensor_file_at(file, i);
        bool loud = model->loud && strstr(t->name, model->loud);
        copy_tensor(w, t, model->type(model->ctx, i, t), loud ? model->factor : 1.0f, decoded);
    }
    EXPECT_OK(gguf_writer_finish(&w));
    tensor_file_close(&file);
}
