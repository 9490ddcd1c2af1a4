/* sample.comp: one token from logits. Tokens are ordered by logit, then by lower id; what top-k and
 * top-p leave is a head of that order: keys above a cut's, and those equal to it with ids below the
 * cut's. A cut's key is found eight bits a round. Masses are summed in double in the order of ids.
 */
#include "cpu/kernels/simd.h"

typedef struct cut {
    uint32_t key, id;
} cut;

typedef struct sampling {
    const float *logits;
    uint32_t vocab;
    float largest, temperature;
} sampling;

INLINE uint32_t order_key(float v)
{
    uint32_t bits = bits_of(v);
    if (bits == 0x80000000u)
        bits = 0;
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

INLINE bool inside(cut head, uint32_t key, uint32_t id)
{
    return key > head.key || (key == head.key && id < head.id);
}

INLINE double weight_of(const sampling *s, float logit)
{
    return exp(((double)logit - (double)s->largest) / (double)s->temperature);
}

/* How much of a head is wanted: a number of tokens, or a share of the whole mass, compared as the
 * host's sampler does. */
typedef struct wanted {
    bool by_mass;
    double count, whole;
    float share;
} wanted;

INLINE bool enough(const wanted *w, double sum)
{
    return w->by_mass ? (float)(sum / w->whole) >= w->share : sum >= w->count;
}

/* Numbers (by_mass: masses) of the tokens inside `head` with keys above `key`, and from it on. */
static void measure(const sampling *s, cut head, uint32_t key, bool by_mass, double *above,
                    double *from)
{
    double more = 0.0, equal = 0.0;
    for (uint32_t i = 0; i < s->vocab; i++) {
        uint32_t own = order_key(s->logits[i]);
        if (own < key || !inside(head, own, i))
            continue;
        double w = by_mass ? weight_of(s, s->logits[i]) : 1.0;
        if (own > key)
            more += w;
        else
            equal += w;
    }
    *above = more;
    *from = more + equal;
}

/* The largest key with enough of `head` at or above it; 0 if there is none. */
static uint32_t find_key(const sampling *s, cut head, const wanted *w)
{
    uint32_t key = 0;
    double above = 0.0; /* of keys beyond those that share the bits found so far */
    for (int shift = 24; shift >= 0; shift -= 8) {
        double bucket[256] = {0};
        uint32_t mask = shift == 24 ? 0 : UINT32_MAX << (shift + 8);
        for (uint32_t i = 0; i < s->vocab; i++) {
            uint32_t own = order_key(s->logits[i]);
            if ((own & mask) == key && inside(head, own, i))
                bucket[own >> shift & 255] += w->by_mass ? weight_of(s, s->logits[i]) : 1.0;
        }
        uint32_t digit = 255;
        while (digit > 0 && !enough(w, above + bucket[digit]))
            above += bucket[digit--];
        key |= digit << shift;
    }
    return key;
}

/* The id below which `keep` tokens of `head` with this key lie. */
static uint32_t find_id(const sampling *s, cut head, uint32_t key, double keep)
{
    double found = 0.0;
    for (uint32_t i = 0; i < s->vocab; i++) {
        uint32_t own = order_key(s->logits[i]);
        if (own == key && inside(head, own, i) && ++found >= keep)
            return i + 1;
    }
    return s->vocab;
}

static cut cut_ties(const sampling *s, cut head, uint32_t key, double above, double from,
                    double keep)
{
    cut result = {key, key == head.key ? head.id : s->vocab};
    if (keep < from - above)
        result.id = find_id(s, head, key, keep);
    return result;
}

static uint32_t draw(const sampling *s, cut head, float min_p, float uniform, uint32_t best)
{
    double total = 0.0, sum = 0.0;
    uint32_t drawn = best;
    for (int round = 0; round < 2; round++) {
        double target = (double)(uniform < 0.99999994f ? uniform : 0.99999994f) * total;
        for (uint32_t i = 0; i < s->vocab; i++) {
            if (!inside(head, order_key(s->logits[i]), i))
                continue;
            double w = weight_of(s, s->logits[i]);
            if (!((float)w >= min_p))
                continue;
            if (round == 0) {
                total += w;
                continue;
            }
            drawn = i;
            sum += w;
            if (sum > target)
                return drawn;
        }
    }
    return drawn;
}

DECLARE(sample)
{
    const cpu_step *step = c->step;
    uint32_t *result = c->buffer[1];
    sampling s = {.logits = c->buffer[0],
                  .vocab = *(const uint32_t *)c->push,
                  .temperature = step->temperature};
    (void)line, (void)count, (void)z;
    uint32_t best = 0, best_key = 0;
    bool finite = true;
    for (uint32_t i = 0; i < s.vocab; i++) {
        uint32_t key = order_key(s.logits[i]);
        finite = finite && (bits_of(s.logits[i]) & 0x7f800000u) != 0x7f800000u;
        if (key > best_key) {
            best_key = key;
            best = i;
        }
    }
    s.largest = s.logits[best];
    if (!finite || !(s.temperature > 0.0f)) {
        result[0] = best;
        result[1] = finite ? 0 : 1;
        return;
    }
    cut head = {0, s.vocab}; /* everything */
    double above, from;
    if (step->top_k != 0 && step->top_k < s.vocab) {
        wanted w = {.count = step->top_k};
        uint32_t key = find_key(&s, head, &w);
        measure(&s, head, key, false, &above, &from);
        head = cut_ties(&s, head, key, above, from, w.count - above);
    }
    if (step->top_p > 0.0f && step->top_p < 1.0f) {
        wanted w = {.by_mass = true, .share = step->top_p};
        double mass_above, mass_from;
        measure(&s, head, 0, true, &mass_above, &w.whole);
        uint32_t key = find_key(&s, head, &w);
        measure(&s, head, key, true, &mass_above, &mass_from);
        measure(&s, head, key, false, &above, &from);
        /* All with this key weigh the same. */
        double each = from > above ? (mass_from - mass_above) / (from - above) : 0.0, keep = 1.0;
        while (keep < from - above && !enough(&w, mass_above + keep * each))
            keep++;
        head = cut_ties(&s, head, key, above, from, keep);
    }
    result[0] = draw(&s, head, step->min_p, step->uniform_draw, best);
    result[1] = 0;
}
