#include "model/mix.h"

/* What roles have in common. */
typedef enum mix_class {
    CLASS_PLAIN,     /* norms and routers: small, and errors in them go everywhere */
    CLASS_EMBEDDING, /* one row a token: costs memory but no reading */
    CLASS_HEAD,
    CLASS_ATTENTION, /* q, k, gates, projections back */
    CLASS_VALUE,     /* softmax v, and lightning qkv, which holds it */
    CLASS_UP,        /* w1, w3 */
    CLASS_DOWN,      /* w2 */
    CLASS_COUNT
} mix_class;

static const uint8_t classes[ROLE_COUNT] = {
    [ROLE_EMBEDDING] = CLASS_EMBEDDING,
    [ROLE_FINAL_NORM] = CLASS_PLAIN,
    [ROLE_HEAD] = CLASS_HEAD,
    [ROLE_INPUT_NORM] = CLASS_PLAIN,
    [ROLE_POST_NORM] = CLASS_PLAIN,
    [ROLE_LIGHTNING_QKV] = CLASS_VALUE,
    [ROLE_LIGHTNING_GATE] = CLASS_ATTENTION,
    [ROLE_LIGHTNING_NORM] = CLASS_PLAIN,
    [ROLE_LIGHTNING_OUT] = CLASS_ATTENTION,
    [ROLE_SOFTMAX_Q] = CLASS_ATTENTION,
    [ROLE_SOFTMAX_K] = CLASS_ATTENTION,
    [ROLE_SOFTMAX_V] = CLASS_VALUE,
    [ROLE_SOFTMAX_OUT] = CLASS_ATTENTION,
    [ROLE_ROUTER] = CLASS_PLAIN,
    [ROLE_W1] = CLASS_UP,
    [ROLE_W2] = CLASS_DOWN,
    [ROLE_W3] = CLASS_UP,
};

struct mix {
    const char *name;
    uint8_t file_type; /* its number in general.file_type */
    /* embedding, head, attention, value, up, down; `more`: value and down in the layers where
     * errors cost most, the first and last eighth and every third between */
    uint8_t embedding, head, attention, value, up, down, more;
};

#define T(name) FUL_TYPE_##name
static const mix mixes[] = {
    /* name, number, embedding, head, attention, value, up, down, more */
    {"f32", 0, T(F32), T(F32), T(F32), T(F32), T(F32), T(F32), T(F32)},
    {"f16", 1, T(F16), T(F16), T(F16), T(F16), T(F16), T(F16), T(F16)},
    {"bf16", 32, T(BF16), T(BF16), T(BF16), T(BF16), T(BF16), T(BF16), T(BF16)},
    {"q8_0", 7, T(Q8_0), T(Q8_0), T(Q8_0), T(Q8_0), T(Q8_0), T(Q8_0), T(Q8_0)},
    {"q6_k", 18, T(Q6_K), T(Q8_0), T(Q6_K), T(Q6_K), T(Q6_K), T(Q6_K), T(Q6_K)},
    {"q5_k_m", 17, T(Q5_K), T(Q6_K), T(Q5_K), T(Q5_K), T(Q5_K), T(Q5_K), T(Q6_K)},
    {"q5_k_s", 16, T(Q5_K), T(Q6_K), T(Q5_K), T(Q5_K), T(Q5_K), T(Q5_K), T(Q5_K)},
    {"q4_k_m", 15, T(Q4_K), T(Q6_K), T(Q4_K), T(Q4_K), T(Q4_K), T(Q4_K), T(Q6_K)},
    {"q4_k_s", 14, T(Q4_K), T(Q6_K), T(Q4_K), T(Q4_K), T(Q4_K), T(Q4_K), T(Q5_K)},
    {"q3_k_m", 12, T(Q3_K), T(Q6_K), T(Q3_K), T(Q4_K), T(Q3_K), T(Q4_K), T(Q5_K)},
    {"q3_k_s", 11, T(Q3_K), T(Q6_K), T(Q3_K), T(Q3_K), T(Q3_K), T(Q3_K), T(Q3_K)},
    {"q2_k", 10, T(Q2_K), T(Q6_K), T(Q3_K), T(Q4_K), T(Q2_K), T(Q3_K), T(Q4_K)},
    {"q5_0", 8, T(Q5_0), T(Q6_K), T(Q5_0), T(Q5_0), T(Q5_0), T(Q5_0), T(Q5_0)},
    {"q5_1", 9, T(Q5_1), T(Q6_K), T(Q5_1), T(Q5_1), T(Q5_1), T(Q5_1), T(Q5_1)},
    {"q4_0", 2, T(Q4_0), T(Q6_K), T(Q4_0), T(Q4_0), T(Q4_0), T(Q4_0), T(Q4_0)},
    {"q4_1", 3, T(Q4_1), T(Q6_K), T(Q4_1), T(Q4_1), T(Q4_1), T(Q4_1), T(Q4_1)},
    {"iq4_nl", 25, T(IQ4_NL), T(Q6_K), T(IQ4_NL), T(Q5_K), T(IQ4_NL), T(IQ4_NL), T(Q5_K)},
    {"mxfp4", 38, T(Q8_0), T(Q8_0), T(Q8_0), T(Q8_0), T(MXFP4), T(MXFP4), T(MXFP4)},
};
#undef T

static char lower(char c)
{
    return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static bool same_name(const char *a, const char *b)
{
    while (*a && lower(*a) == lower(*b)) {
        a++;
        b++;
    }
    return *a == *b;
}

uint32_t mix_count(void)
{
    return (uint32_t)(sizeof mixes / sizeof mixes[0]);
}

const mix *mix_at(uint32_t index)
{
    return index < mix_count() ? &mixes[index] : NULL;
}

const char *mix_name(const mix *m)
{
    return m->name;
}

uint32_t mix_file_type(const mix *m)
{
    return m->file_type;
}

const mix *mix_find(const char *name)
{
    for (uint32_t i = 0; i < mix_count(); i++) {
        if (same_name(mixes[i].name, name))
            return &mixes[i];
    }
    return NULL;
}

static bool layer_gets_more(uint32_t layer, uint32_t layers)
{
    const uint32_t edge = layers / 8;
    return layer < edge || layer >= layers - edge || (layer - edge) % 3 == 2;
}

static ful_type type_wanted(const mix *m, tensor_role role, uint32_t layer, uint32_t layers)
{
    const bool more = layer_gets_more(layer, layers);
    switch (classes[role]) {
    case CLASS_EMBEDDING:
        return (ful_type)m->embedding;
    case CLASS_HEAD:
        return (ful_type)m->head;
    case CLASS_ATTENTION:
        return (ful_type)m->attention;
    case CLASS_VALUE:
        return (ful_type)(more && m->attention != FUL_TYPE_Q8_0 ? m->more : m->value);
    case CLASS_UP:
        return (ful_type)m->up;
    case CLASS_DOWN:
        return (ful_type)(more ? m->more : m->down);
    default:
        return FUL_TYPE_F32;
    }
}

/* Of blocks of 32 where those of 256 do not fit, and floats where these don't. */
static ful_type type_smaller(ful_type type)
{
    switch (type) {
    case FUL_TYPE_Q2_K:
    case FUL_TYPE_Q3_K:
        return FUL_TYPE_IQ4_NL;
    case FUL_TYPE_Q4_K:
        return FUL_TYPE_Q5_0;
    case FUL_TYPE_Q5_K:
        return FUL_TYPE_Q5_1;
    case FUL_TYPE_Q6_K:
        return FUL_TYPE_Q8_0;
    default:
        return FUL_TYPE_F16;
    }
}

ful_type mix_fit(ful_type named, uint64_t cols, ful_type *wanted)
{
    ful_type type = named;
    while (type_row_bytes(type, cols) == 0 && type != FUL_TYPE_F16)
        type = type_smaller(type);
    *wanted = type == named ? FUL_TYPE_DEFAULT : named;
    return type;
}

ful_type mix_type(const mix *m, tensor_role role, uint32_t layer, uint32_t layers, uint64_t cols,
                  ful_type *wanted)
{
    return mix_fit(type_wanted(m, role, layer, layers), cols, wanted);
}
