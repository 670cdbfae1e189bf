#include "engine/gguf.hpp"

#include "catch.hpp"
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
  w.tensor("far", {1 << 20, 1 << 20}, 99, std::string(32, 'x'));  // whatever its type is
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
  CHECK_THROWS_WITH(g.read("new"), contains("tensor new has the type number 99"));
}
