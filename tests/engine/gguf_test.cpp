#include "engine/gguf.hpp"

#include <cmath>
#include <cstring>

#include "catch.hpp"
#include "engine/dequantize.hpp"
#include "engine/gguf_writer.hpp"
#include "random.hpp"

namespace {

std::string floats(std::vector<float> const& x) { return {reinterpret_cast<char const*>(x.data()), x.size() * sizeof(float)}; }

gguf_writer good_file() {
  gguf_writer w;
  w.string("general.architecture", "llama");
  w.value("a.u8", 0, std::uint8_t{200});
  w.value("a.i8", 1, std::int8_t{-5});
  w.value("a.u16", 2, std::uint16_t{60000});
  w.value("a.i16", 3, std::int16_t{-3});
  w.value("a.u32", 4, std::uint32_t{4000000000u});
  w.value("a.i32", 5, std::int32_t{-7});
  w.value("a.f32", 6, 1.5f);
  w.value("a.bool", 7, std::uint8_t{1});
  w.value("a.u64", 10, std::uint64_t{1} << 40);
  w.value("a.i64", 11, -(std::int64_t{1} << 40));
  w.value("a.f64", 12, 2.25);
  w.strings("a.list", {"x", "", "yz"});
  w.tensor("matrix", {4, 3}, 0, floats({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}));
  w.tensor("vector", {2}, 0, floats({-1, -2}));
  return w;
}

void refused(std::string const& bytes, std::string const& words) {
  scratch_file const f(bytes);
  CHECK_THROWS_WITH(engine::gguf_file(f.path()), contains(words));
}

}  // namespace

TEST_CASE("a GGUF file is read by keys and names") {
  for (std::uint32_t const version : {2u, 3u}) {
    auto w = good_file();
    w.version = version;
    scratch_file const f(w.bytes());
    engine::gguf_file const g(f.path());
    CHECK(g.get<std::string>("general.architecture") == "llama");
    CHECK(g.get<std::int64_t>("a.u8") == 200);
    CHECK(g.get<std::int64_t>("a.i8") == -5);
    CHECK(g.get<std::int64_t>("a.u16") == 60000);
    CHECK(g.get<std::int64_t>("a.i16") == -3);
    CHECK(g.get<std::int64_t>("a.u32") == 4000000000);
    CHECK(g.get<std::int64_t>("a.i32") == -7);
    CHECK(g.get<double>("a.f32") == 1.5);
    CHECK(g.get<bool>("a.bool"));
    CHECK(g.get<std::int64_t>("a.u64") == std::int64_t{1} << 40);
    CHECK(g.get<std::int64_t>("a.i64") == -(std::int64_t{1} << 40));
    CHECK(g.get<double>("a.f64") == 2.25);
    CHECK(g.get<std::vector<std::string>>("a.list") == std::vector<std::string>{"x", "", "yz"});
    CHECK_FALSE(g.has("nothing"));
    CHECK(g.shape("matrix") == std::vector<std::int64_t>{3, 4});
    CHECK(g.read("matrix") == std::vector<float>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    CHECK(g.read("vector") == std::vector<float>{-1, -2});
    std::vector<float> rows(8);
    g.read_rows("matrix", 1, 2, rows.data());
    CHECK(rows == std::vector<float>{4, 5, 6, 7, 8, 9, 10, 11});

    CHECK_THROWS_WITH(g.get<std::string>("nothing"), contains("it has no nothing"));
    CHECK_THROWS_WITH(g.get<std::string>("a.u8"), contains("a.u8 is an integer, where a text is needed"));
    CHECK_THROWS_WITH(g.get<std::vector<std::int64_t>>("a.list"), contains("a list of texts, where a list of integers"));
    CHECK_THROWS_WITH(g.read("nothing"), contains("no tensor nothing"));
    CHECK_THROWS_WITH(g.read_rows("matrix", 2, 2, rows.data()), contains("only 3 rows"));
    CHECK_THROWS_WITH(g.read_rows("matrix", -1, 1, rows.data()), contains("only 3 rows"));
  }
}

TEST_CASE("a file that ends at any byte is refused or complete, never read beyond") {
  std::string const whole = good_file().bytes();
  std::size_t const last_needed = whole.size() - (32 - 2 * sizeof(float));  // what follows pads
  for (std::size_t n = 0; n < whole.size(); ++n) {
    scratch_file const f(whole.substr(0, n));
    INFO(n << " of " << whole.size() << " bytes");
    if (n < last_needed)
      CHECK_THROWS_AS(engine::gguf_file(f.path()), engine::gguf_error);
    else
      CHECK(engine::gguf_file(f.path()).read("vector") == std::vector<float>{-1, -2});
  }
}

TEST_CASE("any changed byte is refused or read, never followed out of the file") {
  std::string const whole = good_file().bytes();
  random_numbers r(1);
  for (int i = 0; i < 4000; ++i) {
    std::string broken = whole;
    for (std::int64_t j = r.below(3); j >= 0; --j) broken[std::size_t(r.below(std::int64_t(broken.size())))] = char(r.below(256));
    scratch_file const f(broken);
    try {
      engine::gguf_file const g(f.path());
      if (g.has_tensor("matrix")) g.read("matrix");
      if (g.has_tensor("vector")) g.read("vector");
    } catch (engine::gguf_error const&) {
    }
  }
}

TEST_CASE("what is wrong with a file is said") {
  CHECK_THROWS_WITH(engine::gguf_file("/nonexistent/model.gguf"), contains("opening it failed"));
  CHECK_THROWS_WITH(engine::gguf_file(std::filesystem::temp_directory_path()), contains("not a file"));
  refused("", "it is empty");
  refused("this is a text that is long enough for a header", "it is no GGUF file");
  auto w = good_file();
  w.version = 4;
  refused(w.bytes(), "version 4");
  w = good_file();
  w.value("a.u8", 0, std::uint8_t{1});
  refused(w.bytes(), "the key a.u8 twice");
  w = good_file();
  w.tensor("vector", {2}, 0, floats({1, 2}));
  refused(w.bytes(), "the tensor vector twice");
  w = good_file();
  w.value("odd", 99, std::uint8_t{1});
  refused(w.bytes(), "unknown type 99");
  w = good_file();
  w.tensor("far", {1 << 20}, 0, floats({1}));
  refused(w.bytes(), "beyond its end");
  w = good_file();
  w.tensor("ragged", {33}, 8, std::string(68, 'x'));
  refused(w.bytes(), "whole number of blocks");
  for (auto const& shape : {std::vector<std::uint64_t>{0}, {std::uint64_t{1} << 40, std::uint64_t{1} << 40}, {~std::uint64_t{0}}}) {
    w = good_file();
    w.tensor("odd", shape, 0, floats({1}));
    refused(w.bytes(), "impossible shape");
  }
  w = good_file();
  w.tensor("odd", {}, 0, floats({1}));
  refused(w.bytes(), "0 dimensions");
  w = good_file();
  w.value("general.alignment", 4, std::uint32_t{24});
  refused(w.bytes(), "power of two");
  w = good_file();
  w.tensors = std::uint64_t{1} << 60;
  refused(w.bytes(), "ends before");
  w = good_file();
  w.values = std::uint64_t{1} << 60;
  refused(w.bytes(), "ends before");
  w = good_file();  // a type that is not read is refused where it is read
  w.tensor("new", {32}, 99, std::string(32, 'x'));
  scratch_file const f(w.bytes());
  engine::gguf_file const g(f.path());
  CHECK(g.read("vector").size() == 2);
  CHECK_THROWS_WITH(g.read("new"), contains("tensor new has the type 99"));
}

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
int byte_at(std::string const& b, int i) { return bits(b, 8 * i, 8); }
int nibble(std::string const& b, int byte, bool high) { return bits(b, 8 * byte + (high ? 4 : 0), 4); }

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
    default:
      return NAN;
  }
}

}  // namespace

TEST_CASE("every quantized type decodes to what its format says") {
  random_numbers r(2);
  for (std::uint32_t const type : {2u, 3u, 6u, 7u, 8u, 12u, 13u, 14u}) {
    auto const facts = *engine::facts_of(type);
    INFO(facts.name);
    for (int trial = 0; trial < 50; ++trial) {
      std::string blocks;
      for (std::int64_t i = 0; i < 3 * facts.bytes; ++i) blocks += char(r.below(256));
      for (int b = 0; b < 3; ++b)  // scales that are finite
        for (int const at : type == 14 ? std::vector<int>{209} : type == 2 || type == 6 || type == 8 ? std::vector<int>{1} : std::vector<int>{1, 3})
          blocks[std::size_t(b * facts.bytes + at)] = char(blocks[std::size_t(b * facts.bytes + at)] & 0xbf);
      std::vector<float> x(std::size_t(3 * facts.elements));
      engine::dequantize(type, reinterpret_cast<std::byte const*>(blocks.data()), 3 * facts.elements, x.data());
      for (std::int64_t i = 0; i < 3 * facts.elements; ++i) {
        double const expected = element(type, blocks.substr(std::size_t(i / facts.elements * facts.bytes), std::size_t(facts.bytes)), int(i % facts.elements));
        REQUIRE(double(x[std::size_t(i)]) == Approx(expected).epsilon(1e-5).margin(1e-5));
      }
    }
  }
  CHECK_FALSE(engine::facts_of(99));
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
