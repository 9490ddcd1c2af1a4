#version 450
#pragma use_storage_buffer
// out[i] = a[i] * mul + add + CONSTANT for i < count. Tests of the device layer.
layout(local_size_x_id = 0, local_size_y_id = 1, local_size_z_id = 2) in;
layout(constant_id = 3) const uint CONSTANT = 0;

layout(binding = 0) readonly buffer A { uint a[]; };
layout(binding = 1) writeonly buffer O { uint o[]; };
layout(push_constant) uniform Push { uint count, mul, add; };

void main()
{
    uint i = gl_GlobalInvocationID.x;
    if (i < count)
        o[i] = a[i] * mul + add + CONSTANT;
}
