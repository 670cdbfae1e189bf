#include "engine/dequantize.hpp"

#include <cmath>
#include <cstring>

#include "cellar/core/math.hpp"

namespace engine {

namespace {

using cellar::to_float;
using std::uint8_t;

template <class T>
T load(std::byte const* from) {
  T x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
float half(std::byte const* from) { return to_float(load<cellar::f16>(from)); }
int u8(std::byte const* from, int i) { return int(from[i]); }
int i8(std::byte const* from, int i) { return load<std::int8_t>(from + i); }

template <class T>
void plain(std::byte const* b, float* to) {
  *to = to_float(load<T>(b));
}

void q8_0(std::byte const* b, float* to) {  // {f16 scale, 32 x i8}
  float const d = half(b);
  for (int i = 0; i < 32; ++i) to[i] = d * float(i8(b + 2, i));
}
void q4_0(std::byte const* b, float* to) {  // {f16 scale, 16 bytes: low nibbles are 0..15, high ones 16..31}
  float const d = half(b);
  for (int i = 0; i < 16; ++i) {
    to[i] = d * float((u8(b + 2, i) & 15) - 8);
    to[i + 16] = d * float((u8(b + 2, i) >> 4) - 8);
  }
}
void q4_1(std::byte const* b, float* to) {  // {f16 scale, f16 minimum, 16 bytes}
  float const d = half(b), m = half(b + 2);
  for (int i = 0; i < 16; ++i) {
    to[i] = d * float(u8(b + 4, i) & 15) + m;
    to[i + 16] = d * float(u8(b + 4, i) >> 4) + m;
  }
}
void q5_0(std::byte const* b, float* to) {  // {f16 scale, 32 fifth bits, 16 bytes}
  float const d = half(b);
  auto const high = load<std::uint32_t>(b + 2);
  for (int i = 0; i < 16; ++i) {
    to[i] = d * float(((u8(b + 6, i) & 15) | int(high >> i & 1) << 4) - 16);
    to[i + 16] = d * float((u8(b + 6, i) >> 4 | int(high >> (i + 16) & 1) << 4) - 16);
  }
}
void q5_1(std::byte const* b, float* to) {  // {f16 scale, f16 minimum, 32 fifth bits, 16 bytes}
  float const d = half(b), m = half(b + 2);
  auto const high = load<std::uint32_t>(b + 4);
  for (int i = 0; i < 16; ++i) {
    to[i] = d * float((u8(b + 8, i) & 15) | int(high >> i & 1) << 4) + m;
    to[i + 16] = d * float(u8(b + 8, i) >> 4 | int(high >> (i + 16) & 1) << 4) + m;
  }
}

void q2_k(std::byte const* b, float* to) {  // {16 bytes of scales (low) and minima (high), 64 bytes, f16 scale, f16 minimum}: 16 groups of 16
  float const d = half(b + 80), m = half(b + 82);
  for (int part = 0; part < 2; ++part)
    for (int quarter = 0; quarter < 4; ++quarter)
      for (int i = 0; i < 32; ++i) {
        int const packed = u8(b, part * 8 + quarter * 2 + i / 16), x = u8(b + 16, part * 32 + i) >> (quarter * 2) & 3;
        to[part * 128 + quarter * 32 + i] = d * float(packed & 15) * float(x) - m * float(packed >> 4);
      }
}
void q3_k(std::byte const* b, float* to) {  // {32 bytes of third bits, 64 bytes of low pairs, 12 bytes of scales, f16 scale}: 16 groups of 16
  float const d = half(b + 108);
  for (int part = 0; part < 2; ++part)
    for (int quarter = 0; quarter < 4; ++quarter)
      for (int i = 0; i < 32; ++i) {
        int const group = part * 8 + quarter * 2 + i / 16;
        int const scale = (u8(b + 96, group % 8) >> (group / 8 * 4) & 15) | (u8(b + 104, group % 4) >> (group / 4 * 2) & 3) << 4;
        int const low = u8(b + 32, part * 32 + i) >> (quarter * 2) & 3, third = u8(b, i) >> (part * 4 + quarter) & 1;
        to[part * 128 + quarter * 32 + i] = d * float(scale - 32) * float((low | third << 2) - 4);
      }
}

/// Six-bit scale and minimum number j (0..7) of the 12 packed bytes of Q4_K and Q5_K.
struct scale_min {
  int scale, minimum;
};
scale_min packed_scale(std::byte const* s, int j) {
  if (j < 4) return {u8(s, j) & 63, u8(s, j + 4) & 63};
  return {(u8(s, j + 4) & 15) | (u8(s, j - 4) >> 6) << 4, u8(s, j + 4) >> 4 | (u8(s, j) >> 6) << 4};
}

void q4_k(std::byte const* b, float* to) {  // {f16 scale, f16 minimum, 12 bytes of scales, 128 bytes}: 8 groups of 32
  float const d = half(b), m = half(b + 2);
  for (int group = 0; group < 8; ++group) {
    auto const [scale, minimum] = packed_scale(b + 4, group);
    std::byte const* const q = b + 16 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) to[group * 32 + i] = d * float(scale) * float(u8(q, i) >> (group % 2 * 4) & 15) - m * float(minimum);
  }
}
void q5_k(std::byte const* b, float* to) {  // {f16 scale, f16 minimum, 12 bytes of scales, 32 bytes of fifth bits, 128 bytes}
  float const d = half(b), m = half(b + 2);
  for (int group = 0; group < 8; ++group) {
    auto const [scale, minimum] = packed_scale(b + 4, group);
    std::byte const* const q = b + 48 + group / 2 * 32;
    for (int i = 0; i < 32; ++i) {
      int const x = (u8(q, i) >> (group % 2 * 4) & 15) | (u8(b + 16, i) >> group & 1) << 4;
      to[group * 32 + i] = d * float(scale) * float(x) - m * float(minimum);
    }
  }
}
void q6_k(std::byte const* b, float* to) {  // {128 bytes of low nibbles, 64 bytes of high pairs, 16 x i8 scales, f16 scale}
  float const d = half(b + 208);
  for (int part = 0; part < 2; ++part)
    for (int quarter = 0; quarter < 4; ++quarter)
      for (int i = 0; i < 32; ++i) {
        int const low = u8(b, part * 64 + quarter % 2 * 32 + i) >> (quarter / 2 * 4) & 15;
        int const high = u8(b + 128, part * 32 + i) >> (quarter * 2) & 3;
        int const scale = i8(b + 192, part * 8 + quarter * 2 + i / 16);
        to[part * 128 + quarter * 32 + i] = d * float(scale) * float((low | high << 4) - 32);
      }
}

void q8_k(std::byte const* b, float* to) {  // {f32 scale, 256 x i8, sums of 16 that only products need}
  auto const d = load<float>(b);
  for (int i = 0; i < 256; ++i) to[i] = d * float(i8(b + 4, i));
}

constexpr std::int8_t uneven_levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

void uneven_group(float scale, std::byte const* q, float* to) {  // 16 bytes
  for (int i = 0; i < 16; ++i) {
    to[i] = scale * float(uneven_levels[u8(q, i) & 15]);
    to[i + 16] = scale * float(uneven_levels[u8(q, i) >> 4]);
  }
}
void iq4_nl(std::byte const* b, float* to) { uneven_group(half(b), b + 2, to); }  // {f16 scale, 16 bytes}
void iq4_xs(std::byte const* b, float* to) {  // {f16 scale, u16 of high pairs and 4 bytes of low nibbles of scales, 128 bytes}: 8 groups of 32
  float const d = half(b);
  auto const high = load<std::uint16_t>(b + 2);
  for (int group = 0; group < 8; ++group) {
    int const scale = (u8(b + 4, group / 2) >> (group % 2 * 4) & 15) | (high >> (group * 2) & 3) << 4;
    uneven_group(d * float(scale - 32), b + 8 + group * 16, to + group * 32);
  }
}

void mxfp4(std::byte const* b, float* to) {  // {exponent of two plus 127, 16 bytes of e2m1}
  static constexpr std::int8_t doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  float const d = std::ldexp(1.f, u8(b, 0) - 128);
  for (int i = 0; i < 16; ++i) {
    to[i] = d * float(doubled[u8(b + 1, i) & 15]);
    to[i + 16] = d * float(doubled[u8(b + 1, i) >> 4]);
  }
}

struct type_entry {
  std::uint32_t number;
  block_facts facts;
  void (*decode)(std::byte const*, float*);
};
constexpr type_entry types[] = {
    {0, {"F32", 1, 4}, plain<float>},   {1, {"F16", 1, 2}, plain<cellar::f16>},
    {2, {"Q4_0", 32, 18}, q4_0},        {3, {"Q4_1", 32, 20}, q4_1},
    {6, {"Q5_0", 32, 22}, q5_0},        {7, {"Q5_1", 32, 24}, q5_1},
    {8, {"Q8_0", 32, 34}, q8_0},        {10, {"Q2_K", 256, 84}, q2_k},
    {11, {"Q3_K", 256, 110}, q3_k},     {12, {"Q4_K", 256, 144}, q4_k},
    {13, {"Q5_K", 256, 176}, q5_k},     {14, {"Q6_K", 256, 210}, q6_k},
    {15, {"Q8_K", 256, 292}, q8_k},     {20, {"IQ4_NL", 32, 18}, iq4_nl},
    {23, {"IQ4_XS", 256, 136}, iq4_xs}, {30, {"BF16", 1, 2}, plain<cellar::bf16>},
    {39, {"MXFP4", 32, 17}, mxfp4},
};

/// Types of the format that are not decoded here.
constexpr struct {
  std::uint32_t number;
  char const* name;
} others[] = {{9, "Q8_1"}, {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"}, {19, "IQ1_S"}, {21, "IQ3_S"}, {22, "IQ2_S"}, {24, "I8"},  {25, "I16"},
              {26, "I32"}, {27, "I64"},     {28, "F64"},    {29, "IQ1_M"},   {34, "TQ1_0"}, {35, "TQ2_0"}, {40, "NVFP4"}, {41, "Q1_0"}};

type_entry const* find(std::uint32_t type) {
  for (auto const& entry : types)
    if (entry.number == type) return &entry;
  return nullptr;
}

}  // namespace

std::optional<block_facts> facts_of(std::uint32_t type) {
  auto const* const entry = find(type);
  return entry ? std::optional(entry->facts) : std::nullopt;
}

std::string type_name(std::uint32_t type) {
  if (auto const* const entry = find(type)) return entry->facts.name;
  for (auto const& other : others)
    if (other.number == type) return other.name;
  return "number " + std::to_string(type);
}

void dequantize(std::uint32_t type, std::byte const* blocks, std::int64_t elements, float* to) {
  auto const* const entry = find(type);
  for (std::int64_t i = 0; i < elements; i += entry->facts.elements, blocks += entry->facts.bytes) entry->decode(blocks, to + i);
}

}  // namespace engine
