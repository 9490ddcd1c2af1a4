// Sums of VALS values over the LANES neighbouring invocations of a line, in fixed order: through
// subgroup shuffles within GROUP of them (SUBGROUP), then through shared memory. All lanes get them.
// Before including this, declare WG, LANES, GROUP (1 without SUBGROUP) and VALS.
#ifndef FULGUR_INC_LANESUM
#define FULGUR_INC_LANESUM

const uint LANE_GROUPS = LANES / GROUP; // of a line
shared float lane_partial[LANES > GROUP ? WG / GROUP * VALS : 1u];

// Neighbours in a line must be neighbours in a subgroup, however the driver numbers invocations.
uint lane_thread()
{
#if defined(SUBGROUP)
    return gl_SubgroupID * gl_SubgroupSize + gl_SubgroupInvocationID;
#else
    return gl_LocalInvocationID.x;
#endif
}

float sums[VALS];

// Sums up `sums`. Every invocation of the workgroup calls this.
void lanes_sum(uint t)
{
#if defined(SUBGROUP)
    [[unroll]] for (uint offset = GROUP / 2u; offset > 0u; offset /= 2u)
        [[unroll]] for (uint i = 0u; i < VALS; i++)
            sums[i] += subgroupShuffleXor(sums[i], offset);
#endif
    if (LANES > GROUP) {
        const uint groups = WG / GROUP;
        if (t % GROUP == 0u)
            [[unroll]] for (uint i = 0u; i < VALS; i++)
                lane_partial[i * groups + t / GROUP] = sums[i];
        barrier();
        uint lane = t % LANES, first = (t - lane) / GROUP;
        for (uint i = lane; i < VALS; i += LANES) {
            float sum = 0.0;
            for (uint g = 0u; g < LANE_GROUPS; g++)
                sum += lane_partial[i * groups + first + g];
            lane_partial[i * groups + first] = sum;
        }
        barrier();
        [[unroll]] for (uint i = 0u; i < VALS; i++)
            sums[i] = lane_partial[i * groups + first];
    }
}

#endif
