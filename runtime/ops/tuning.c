#include "ops/tuning.h"

#include <assert.h>
#include <stddef.h>
#include <string.h>

/* Stored with the choices: those of other versions of this table are not used. */
enum { TUNING_VERSION = 3, VERSION_CHOICE = 0, FIRST_CHOICE = 1 };

enum { WORDS = sizeof(op_tuning) / sizeof(uint32_t) };
static_assert((int)FIRST_CHOICE + (int)WORDS <= (int)DEVICE_CHOICES, "every member has a choice");

#define AT(member) (offsetof(op_tuning, member) / sizeof(uint32_t))

static const tuning_field fields[] = {
    {"matmul tile, up to 16 rows", TUNING_MATMUL, 16, AT(tile[0]), {0}},
    {"matmul tile, up to 32 rows", TUNING_MATMUL, 32, AT(tile[1]), {0}},
    {"matmul tile, up to 64 rows", TUNING_MATMUL, 64, AT(tile[2]), {0}},
    {"matmul tile, up to 128 rows", TUNING_MATMUL, 128, AT(tile[3]), {0}},
    {"matmul tile, up to 512 rows", TUNING_MATMUL, 512, AT(tile[4]), {0}},
    {"matmul tile, more rows", TUNING_MATMUL, 2048, AT(tile[5]), {0}},
    {"expert tile, up to 16 rows", TUNING_EXPERTS, 16, AT(group_tile[0]), {0}},
    {"expert tile, up to 32 rows", TUNING_EXPERTS, 32, AT(group_tile[1]), {0}},
    {"expert tile, up to 64 rows", TUNING_EXPERTS, 64, AT(group_tile[2]), {0}},
    {"expert tile, up to 128 rows", TUNING_EXPERTS, 128, AT(group_tile[3]), {0}},
    {"expert tile, up to 512 rows", TUNING_EXPERTS, 512, AT(group_tile[4]), {0}},
    {"expert tile, more rows", TUNING_EXPERTS, 1024, AT(group_tile[5]), {0}},
    {"matvec: invocations",
     TUNING_MATVEC,
     1,
     AT(matvec_invocations),
     {16384, 32768, 65536, 131072, 262144}},
    {"matvec: loads under way", TUNING_MATVEC, 1, AT(matvec_loads), {4, 8, 16}},
    {"attention decode: workgroups",
     TUNING_ATTENTION,
     1,
     AT(attention_groups),
     {4, 8, 16, 128, 256, 512, 1024, 2048}},
    {"lightning prefill", TUNING_LIGHTNING, 0, AT(lightning), {0}},
    {"lightning prefill: workgroups",
     TUNING_LIGHTNING,
     0,
     AT(lightning_groups),
     {1, 32, 64, 128, 256, 512}},
    {"attention decode: least keys",
     TUNING_ATTENTION,
     1,
     AT(attention_keys),
     {32, 64, 128, 256, 512}},
};
enum { FIELDS = sizeof(fields) / sizeof(fields[0]) };
static_assert((int)FIELDS == (int)WORDS, "every member has a line");

const tuning_field *tuning_fields(uint32_t *count)
{
    *count = FIELDS;
    return fields;
}

uint32_t tuning_rows_class(uint32_t rows)
{
    static const uint32_t most[TUNING_ROWS - 1] = {16, 32, 64, 128, 512};
    uint32_t i = 0;
    while (i < TUNING_ROWS - 1 && rows > most[i])
        i++;
    return i;
}

/* Files hold what an older or newer build thought good: only what this one knows is taken. */
static bool known(const tuning_field *f, uint32_t value)
{
    uint32_t kind = value >> 28;
    if (f->work == TUNING_LIGHTNING && f->values[0] == 0)
        return value >> 20 != 0 && (value >> 8 & 0xfff) != 0 && (value & 0xf0) != 0 &&
               (value & 0xf) != 0;
    if (f->values[0] == 0)
        return kind == TILE_KIND_SUBGROUP || kind == TILE_KIND_WORKGROUP;
    for (uint32_t i = 0; i < TUNING_VALUES && f->values[i] != 0; i++)
        if (value == f->values[i])
            return true;
    return false;
}

op_tuning device_tuning(const ful_device *device)
{
    op_tuning t = {.tile = {0}};
    uint32_t words[WORDS];
    if (device_choice(device, VERSION_CHOICE) != TUNING_VERSION)
        return t;
    memcpy(words, &t, sizeof(t));
    for (uint32_t i = 0; i < FIELDS; i++) {
        uint32_t value = device_choice(device, FIRST_CHOICE + fields[i].index);
        if (value != 0 && known(&fields[i], value))
            words[fields[i].index] = value;
    }
    memcpy(&t, words, sizeof(t));
    return t;
}

uint32_t tuning_get(const ful_device *device, const tuning_field *field)
{
    op_tuning t = device_tuning(device);
    uint32_t words[WORDS];
    memcpy(words, &t, sizeof(t));
    return words[field->index];
}

void tuning_set(ful_device *device, const tuning_field *field, uint32_t value)
{
    if (device_choice(device, VERSION_CHOICE) != TUNING_VERSION)
        for (uint32_t i = 0; i < DEVICE_CHOICES; i++)
            device_choice_set(device, i, 0);
    device_choice_set(device, VERSION_CHOICE, TUNING_VERSION);
    device_choice_set(device, FIRST_CHOICE + field->index, value);
}
