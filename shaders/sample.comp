// One token from logits [vocab], by the rule of the host's sampler: temperature, top-k, top-p, min-p,
// then the inverse of the cumulated distribution in the order of ids at one uniform number.
//
// logits [vocab] f32 -> result {u32 token, u32 flags}; flag bit 0: a logit is not finite.
//
// One workgroup. Tokens are ordered by logit, then by lower id; what top-k and top-p leave is a head of
// that order, so each is a cut (key, id): tokens with a larger key stay, and those of an equal key with an id
// below the cut's. A cut's key is found two bits a round, by the number or the mass of the tokens at
// or above each of three candidates. Masses are w = exp((l - largest) / temperature), summed with
// compensation in a fixed order.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;

layout(std430, binding = 0) readonly buffer Logits { float logits[]; };
layout(std430, binding = 1) writeonly buffer Result { uint result[]; };

layout(push_constant) uniform Push {
    uint vocab;
} push;

const uint AHEAD = 4u; // 1,024 invocations with more of them in flight leave 64 registers

shared vec4 cells[WG];
shared uint keys[WG];
shared uint ids[WG];
shared uint drawn_lane;
shared uint drawn;

uint me;
float largest;

struct Cut {
    uint key;
    uint id; // of equal keys, ids below this stay
};

// Order of floats as unsigned integers, -0 equal to +0.
uint order_key(float v)
{
    uint bits = floatBitsToUint(v);
    if (bits == 0x80000000u)
        bits = 0u;
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

float key_value(uint key)
{
    return uintBitsToFloat((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key);
}

bool inside(Cut cut, uint key, uint id)
{
    return key > cut.key || (key == cut.key && id < cut.id);
}

float weight_of(float logit)
{
    return exp((logit - largest) / step.temperature);
}

void add(inout vec4 sum, inout vec4 lost, vec4 value)
{
    precise vec4 y = value - lost;
    precise vec4 t = sum + y;
    precise vec4 c = (t - sum) - y;
    lost = c;
    sum = t;
}

// The sum over all invocations, for all of them.
vec4 total_of(vec4 value)
{
    cells[me] = value;
    barrier();
    for (uint half_width = WG / 2u; half_width > 0u; half_width /= 2u) {
        if (me < half_width)
            cells[me] += cells[me + half_width];
        barrier();
    }
    vec4 total = cells[0];
    barrier();
    return total;
}

// Several loads at once: one workgroup has little else to hide their latency behind.
void load_ahead(uint i, out float ahead[AHEAD])
{
    [[unroll]] for (uint j = 0u; j < AHEAD; j++)
        ahead[j] = logits[min(i + j * WG, push.vocab - 1u)];
}

// Numbers (by_mass: masses) of the tokens inside `head` with keys from each of three thresholds on;
// in w those with a key above the first.
vec4 measure(Cut head, uvec3 from, bool by_mass)
{
    vec4 sum = vec4(0.0), lost = vec4(0.0);
    for (uint i = me; i < push.vocab; i += AHEAD * WG) {
        float ahead[AHEAD];
        load_ahead(i, ahead);
        [[unroll]] for (uint j = 0u; j < AHEAD; j++) {
            uint id = i + j * WG;
            uint key = order_key(ahead[j]);
            if (id < push.vocab && key >= from.x && inside(head, key, id)) {
                float w = by_mass ? weight_of(ahead[j]) : 1.0;
                vec4 in_each = vec4(1.0, key >= from.y ? 1.0 : 0.0, key >= from.z ? 1.0 : 0.0,
                                    key > from.x ? 1.0 : 0.0);
                add(sum, lost, w * in_each);
            }
        }
    }
    return total_of(sum);
}

// The largest key with `needed` tokens (by_mass: that mass) of `head` at or above it.
uint find_key(Cut head, float needed, bool by_mass)
{
    uint key = 0u;
    for (int shift = 30; shift >= 0; shift -= 2) {
        uvec3 from = uvec3(key) + (uvec3(1u, 2u, 3u) << uint(shift));
        if (from.x > order_key(largest))
            continue; // nothing lies there
        vec4 found = measure(head, from, by_mass);
        if (found.z >= needed)
            key = from.z;
        else if (found.y >= needed)
            key = from.y;
        else if (found.x >= needed)
            key = from.x;
    }
    return key;
}

// The id below which `keep` tokens of `head` with this key lie.
uint find_id(Cut head, uint key, float keep)
{
    uint low = 0u, high = push.vocab; // the count below low is < keep, below high >= keep
    while (high - low > 1u) {
        uint middle = low + (high - low) / 2u;
        vec4 sum = vec4(0.0);
        for (uint i = me; i < middle; i += AHEAD * WG) {
            float ahead[AHEAD];
            load_ahead(i, ahead);
            [[unroll]] for (uint j = 0u; j < AHEAD; j++) {
                uint id = i + j * WG;
                uint k = order_key(ahead[j]);
                sum.x += id < middle && k == key && inside(head, k, id) ? 1.0 : 0.0;
            }
        }
        if (total_of(sum).x >= keep)
            high = middle;
        else
            low = middle;
    }
    return high;
}

Cut cut_ties(Cut head, uint key, float above, float at_or_above, float keep)
{
    Cut cut = Cut(key, push.vocab);
    if (key == head.key)
        cut.id = head.id;
    if (keep < at_or_above - above)
        cut.id = find_id(head, key, keep);
    return cut;
}

// The largest logit (ties: lowest id) into keys[0], ids[0]; true if every logit is finite.
bool find_largest()
{
    uint best_key = 0u, best_id = 0xffffffffu, bad = 0u;
    for (uint i = me; i < push.vocab; i += AHEAD * WG) {
        float ahead[AHEAD];
        load_ahead(i, ahead);
        [[unroll]] for (uint j = 0u; j < AHEAD; j++) {
            uint id = i + j * WG;
            bad |= is_finite(ahead[j]) ? 0u : 1u;
            uint key = order_key(ahead[j]);
            if (id < push.vocab && (key > best_key || best_id == 0xffffffffu)) {
                best_key = key;
                best_id = id;
            }
        }
    }
    keys[me] = best_key;
    ids[me] = best_id;
    barrier();
    for (uint half_width = WG / 2u; half_width > 0u; half_width /= 2u) {
        if (me < half_width) {
            uint other = me + half_width;
            if (keys[other] > keys[me] || (keys[other] == keys[me] && ids[other] < ids[me])) {
                keys[me] = keys[other];
                ids[me] = ids[other];
            }
        }
        barrier();
    }
    return total_of(vec4(float(bad), 0.0, 0.0, 0.0)).x == 0.0;
}

void draw(Cut cut, uint best)
{
    // Stretches of ids, so that the order of invocations is the order of ids.
    uint stretch = (push.vocab + WG - 1u) / WG;
    uint begin = min(me * stretch, push.vocab), end = min(begin + stretch, push.vocab);
    vec4 sum = vec4(0.0), lost = vec4(0.0);
    for (uint i = begin; i < end; i++) {
        float w = weight_of(logits[i]);
        if (inside(cut, order_key(logits[i]), i) && w >= step.min_p)
            add(sum, lost, vec4(w, 0.0, 0.0, 0.0));
    }
    cells[me] = sum;
    if (me == 0u) {
        drawn_lane = WG;
        drawn = best;
    }
    barrier();
    for (uint distance = 1u; distance < WG; distance *= 2u) {
        float left = me >= distance ? cells[me - distance].x : 0.0;
        barrier();
        cells[me].x += left;
        barrier();
    }
    float target = min(step.uniform_draw, 0.99999994) * cells[WG - 1u].x;
    if (cells[me].x > target)
        atomicMin(drawn_lane, me);
    barrier();
    if (me == drawn_lane) {
        float before = me > 0u ? cells[me - 1u].x : 0.0;
        sum = vec4(before, 0.0, 0.0, 0.0);
        lost = vec4(0.0);
        for (uint i = begin; i < end; i++) {
            float w = weight_of(logits[i]);
            if (inside(cut, order_key(logits[i]), i) && w >= step.min_p) {
                drawn = i;
                add(sum, lost, vec4(w, 0.0, 0.0, 0.0));
                if (sum.x > target)
                    break;
            }
        }
    }
    barrier();
}

void main()
{
    me = gl_LocalInvocationID.x;
    bool finite = find_largest();
    uint best = min(ids[0], push.vocab - 1u);
    largest = key_value(keys[0]);
    if (!finite || !(step.temperature > 0.0)) {
        if (me == 0u) {
            result[0] = best;
            result[1] = finite ? 0u : 1u;
        }
        return;
    }
    Cut cut = Cut(0u, push.vocab); // everything
    if (step.top_k != 0u && step.top_k < push.vocab) {
        float keep = float(step.top_k);
        uint key = find_key(cut, keep, false);
        vec4 found = measure(cut, uvec3(key), false);
        cut = cut_ties(cut, key, found.w, found.x, keep - found.w);
    }
    if (step.top_p > 0.0 && step.top_p < 1.0) {
        float needed = step.top_p * measure(cut, uvec3(0u), true).x;
        uint key = find_key(cut, needed, true);
        vec4 mass = measure(cut, uvec3(key), true);
        vec4 count = measure(cut, uvec3(key), false);
        float keep = max(ceil((needed - mass.w) / weight_of(key_value(key))), 1.0);
        cut = cut_ties(cut, key, count.w, count.x, keep);
    }
    draw(cut, best);
    if (me == 0u) {
        result[0] = drawn;
        result[1] = 0u;
    }
}
