#include "engine/dequantize.hpp"

#include <cmath>
#include <map>

#include "catch.hpp"
#include "engine/golden_blocks.hpp"
#include "random.hpp"

namespace {

/// Bits [first, first + count) of a byte string, lowest first.
int bits(std::string const& b, int first, int count) {
  int x = 0;
  for (int i = 0; i < count; ++i) x |= (static_cast<unsigned char>(b[std::size_t((first + i) / 8)]) >> ((first + i) % 8) & 1) << i;
  return x;
}
double half(std::string const& b, int byte) {
  int const h = bits(b, 8 * byte, 16), exponent = h >> 10 & 31, mantissa = h & 1023;
  double const x = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  return h >> 15 ? -x : x;
}
double single(std::string const& b, int byte) {
  int const exponent = bits(b, 8 * byte + 23, 8), mantissa = bits(b, 8 * byte, 23);
  double const x = exponent == 0 ? std::ldexp(mantissa, -149) : std::ldexp((1 << 23) + mantissa, exponent - 150);
  return bits(b, 8 * byte + 31, 1) ? -x : x;
}
int byte_at(std::string const& b, int i) { return bits(b, 8 * i, 8); }
int nibble(std::string const& b, int byte, bool high) { return bits(b, 8 * byte + (high ? 4 : 0), 4); }

int const levels[] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// Bytes that hold the exponents of the scales of a block, of each type.
std::map<std::uint32_t, std::vector<std::size_t>> const exponents = {{2, {1}},       {3, {1, 3}}, {6, {1}},     {7, {1, 3}},  {8, {1}},
                                                                     {10, {81, 83}}, {11, {109}}, {12, {1, 3}}, {13, {1, 3}}, {14, {209}},
                                                                     {15, {3}},      {20, {1}},   {23, {1}},    {39, {}}};

/// Element i of one block, from the description of the format.
double element(std::uint32_t type, std::string const& b, int i) {
  int const low_byte = i % 16;
  bool const high = i >= 16;
  switch (type) {
    case 2:
      return half(b, 0) * (nibble(b, 2 + low_byte, high) - 8);
    case 3:
      return half(b, 0) * nibble(b, 4 + low_byte, high) + half(b, 2);
    case 6:
      return half(b, 0) * ((nibble(b, 6 + low_byte, high) | bits(b, 16 + i, 1) << 4) - 16);
    case 7:
      return half(b, 0) * (nibble(b, 8 + low_byte, high) | bits(b, 32 + i, 1) << 4) + half(b, 2);
    case 8:
      return half(b, 0) * static_cast<signed char>(byte_at(b, 2 + i));
    case 10: {  // sixteen groups of 16: nibbles of scale and minimum; the pairs of four runs of 32 elements lie in the same 32 bytes
      int const run = i / 32 % 4, at = 16 + i / 128 * 32 + i % 32;
      return half(b, 80) * nibble(b, i / 16, false) * bits(b, 8 * at + 2 * run, 2) - half(b, 82) * nibble(b, i / 16, true);
    }
    case 11: {  // as 10, with third bits: bit i / 32 of byte i % 32, and six-bit scales: eight low nibbles, eight high ones, pairs of high bits
      int const g = i / 16, pair = bits(b, 8 * (32 + i / 128 * 32 + i % 32) + 2 * (i / 32 % 4), 2), third = bits(b, 8 * (i % 32) + i / 32, 1);
      int const scale = nibble(b, 96 + g % 8, g >= 8) + 16 * bits(b, 8 * (104 + g % 4) + 2 * (g / 4), 2) - 32;
      return half(b, 108) * scale * (pair - (third ? 0 : 4));
    }
    case 12:
    case 13: {
      // eight groups of 32; their six-bit scales and minima: four each in the low bits of bytes 0..7, four in nibbles of bytes 8..11 and high bits of 0..7
      int const g = i / 32, s = 4;
      int const scale = g < 4 ? byte_at(b, s + g) & 63 : nibble(b, s + 4 + g, false) | (byte_at(b, s + g - 4) >> 6) << 4;
      int const minimum = g < 4 ? byte_at(b, s + 4 + g) & 63 : nibble(b, s + 4 + g, true) | (byte_at(b, s + g) >> 6) << 4;
      int const quants = type == 12 ? 16 : 48;
      int x = nibble(b, quants + g / 2 * 32 + i % 32, g % 2 == 1);
      if (type == 13) x |= bits(b, 8 * (16 + i % 32) + g, 1) << 4;
      return half(b, 0) * scale * x - half(b, 2) * minimum;
    }
    case 14: {
      int const part = i / 128, within = i % 128, quarter = within / 32, l = within % 32;
      int const low = nibble(b, part * 64 + (quarter % 2) * 32 + l, quarter >= 2), high2 = bits(b, 8 * (128 + part * 32 + l) + 2 * quarter, 2);
      return half(b, 208) * static_cast<signed char>(byte_at(b, 192 + i / 16)) * ((low | high2 << 4) - 32);
    }
    case 15:
      return single(b, 0) * static_cast<signed char>(byte_at(b, 4 + i));
    case 20:
      return half(b, 0) * levels[nibble(b, 2 + low_byte, high)];
    case 23: {
      int const g = i / 32, scale = bits(b, 32 + 4 * g, 4) + 16 * bits(b, 16 + 2 * g, 2) - 32;
      return half(b, 0) * scale * levels[nibble(b, 8 + g * 16 + i % 16, i % 32 >= 16)];
    }
    case 39: {  // sign, two bits of exponent with bias 1, one of mantissa
      int const x = nibble(b, 1 + low_byte, high), exponent = x >> 1 & 3;
      double const size = exponent == 0 ? 0.5 * (x & 1) : std::ldexp(1 + 0.5 * (x & 1), exponent - 1);
      return std::ldexp(x & 8 ? -size : size, byte_at(b, 0) - 127);
    }
    default:
      return NAN;
  }
}

}  // namespace

TEST_CASE("every quantized type decodes to what its format says") {
  random_numbers r(2);
  for (auto const& [type, at] : exponents) {
    auto const facts = *engine::facts_of(type);
    INFO(facts.name);
    for (int trial = 0; trial < 50; ++trial) {
      std::string blocks;
      for (std::int64_t i = 0; i < 3 * facts.bytes; ++i) blocks += char(r.below(256));
      for (int b = 0; b < 3; ++b) {  // scales that are finite
        for (auto const byte : at) blocks[std::size_t(b * facts.bytes) + byte] = char(blocks[std::size_t(b * facts.bytes) + byte] & 0xbf);
        if (type == 39) blocks[std::size_t(b * facts.bytes)] = char(r.below(250));
      }
      std::vector<float> x(std::size_t(3 * facts.elements));
      engine::dequantize(type, reinterpret_cast<std::byte const*>(blocks.data()), 3 * facts.elements, x.data());
      for (std::int64_t i = 0; i < 3 * facts.elements; ++i) {
        double const expected = element(type, blocks.substr(std::size_t(i / facts.elements * facts.bytes), std::size_t(facts.bytes)), int(i % facts.elements));
        REQUIRE(double(x[std::size_t(i)]) == Approx(expected).epsilon(1e-5).margin(type == 15 || type == 39 ? 0 : 1e-5));
      }
    }
  }
  CHECK_FALSE(engine::facts_of(99));
  CHECK(engine::type_name(12) == "Q4_K");
  CHECK(engine::type_name(16) == "IQ2_XXS");
  CHECK_FALSE(engine::facts_of(16));
  CHECK(engine::type_name(99) == "number 99");
}

TEST_CASE("blocks decode to what the gguf package of Python gives") {
  for (golden_block const& g : golden_blocks) {
    auto const facts = *engine::facts_of(g.type);
    INFO(facts.name);
    std::string block;
    for (char const* at = g.hex; *at; at += 2) block += char(std::stoi(std::string(at, 2), nullptr, 16));
    REQUIRE(std::int64_t(block.size()) == facts.bytes);
    std::vector<float> x(std::size_t(facts.elements));
    engine::dequantize(g.type, reinterpret_cast<std::byte const*>(block.data()), facts.elements, x.data());
    double sum = 0, moment = 0, size = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      sum += double(x[i]);
      moment += double(i) * double(x[i]);
      size += double(i) * std::abs(double(x[i]));
    }
    CHECK(sum == Approx(g.sum).margin(1e-6 * size));
    CHECK(moment == Approx(g.moment).margin(1e-6 * size));
    for (std::size_t i = 0; i < g.some.size(); ++i) CHECK(double(x[i * x.size() / g.some.size()]) == Approx(g.some[i]).epsilon(1e-6));
  }
}

TEST_CASE("f32, f16 and bf16 tensors decode as they are") {
  std::uint16_t const halves[] = {0x3c00, 0xc100, 0x0001};
  float x[3];
  engine::dequantize(1, reinterpret_cast<std::byte const*>(halves), 3, x);
  CHECK(x[0] == 1.0f);
  CHECK(x[1] == -2.5f);
  CHECK(x[2] == 0x1p-24f);
  std::uint16_t const brains[] = {0x3f80, 0xc020, 0x4049};
  engine::dequantize(30, reinterpret_cast<std::byte const*>(brains), 3, x);
  CHECK(x[0] == 1.0f);
  CHECK(x[1] == -2.5f);
  CHECK(x[2] == 3.140625f);
}
