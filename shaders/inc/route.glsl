// Pieces of routing: logits in an order that holds for everything a float can be.
#ifndef FULGUR_INC_ROUTE
#define FULGUR_INC_ROUTE

// Order of floats as unsigned integers; NaN above everything, -0 equal to +0.
uint order_key(float v)
{
    uint bits = floatBitsToUint(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0xffffffffu;
    if (bits == 0x80000000u)
        bits = 0u;
    return (bits & 0x80000000u) != 0u ? ~bits : bits | 0x80000000u;
}

float key_value(uint key)
{
    return uintBitsToFloat((key & 0x80000000u) != 0u ? key & 0x7fffffffu : ~key);
}

// +inf and NaN are 0xff800000 and up; -inf is 0x007fffff.
bool key_finite(uint key)
{
    return key < 0xff800000u && key > 0x007fffffu;
}

// True if (key, index) comes before (other, other_index) in falling order.
bool before(uint key, uint index, uint other, uint other_index)
{
    return key > other || (key == other && index < other_index);
}

#endif
