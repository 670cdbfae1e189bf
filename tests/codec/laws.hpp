#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "catch.hpp"
#include "cellar/codec/concept.hpp"
#include "random.hpp"
#include "sweep.hpp"

/// Rows that codecs meet: normal ones, none at all, one channel, a bias, constant ones, the smallest and the largest that `largest` allows.
template <int D>
std::vector<std::vector<float>> rows_to_code(float largest) {
  random_numbers r(D);
  std::vector<std::vector<float>> rows;
  auto const add = [&](auto const& channel) {
    rows.emplace_back();
    for (int c = 0; c < D; ++c) rows.back().push_back(std::clamp(float(channel(c)), -largest, largest));
  };
  for (float const scale : {3.0f, 1e-3f, 100.0f, 1e-20f, 1e-36f, 1e-41f, 1e20f, largest / 8}) add([&](int) { return scale * r.normal(); });
  add([](int) { return 0.0f; });
  add([](int) { return -0.0f; });
  add([](int c) { return c == D - 1 ? -50.0f : 0.0f; });
  add([&](int) { return 100 + r.normal(); });
  add([](int) { return -7.3f; });
  add([](int) { return 1e-45f; });
  add([&](int c) { return c % 2 ? largest : -largest; });
  add([&](int) { return largest; });
  add([&](int) { return -largest; });
  add([](int c) { return std::ldexp(c % 3 ? 1.0f : -1.0f, -(c % 24)); });
  return rows;
}

/// A row, what is stored of it, and what that decodes to.
struct coded_row {
  std::vector<float> x;
  std::vector<std::byte> codes, scales;
  std::vector<float> y;
};

/// The laws of codec/concept.hpp over all head dimensions; check(dimension, row) holds each row against the codec's own definition.
template <class Codec, class Bytes, class Check>
void check_codec_laws(Codec const& coder, Bytes const& bytes, Check const& check) {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    auto const rows = rows_to_code<d>(coder.largest(d));
    auto const count = std::int64_t(rows.size());
    std::vector<float> x;
    for (auto const& row : rows) x.insert(x.end(), row.begin(), row.end());
    cellar::row_bytes const size = coder.bytes(d), expected = bytes(d);
    REQUIRE(size.codes == expected.codes);
    REQUIRE(size.scales == expected.scales);

    std::int64_t const code_stride = size.codes + 3, scale_stride = size.scales + 1;  // unaligned on purpose
    std::vector<std::byte> codes(std::size_t(count * code_stride), std::byte{0xab}), scales(std::size_t(count * scale_stride), std::byte{0xcd});
    cellar::row_parts<std::byte> const at{codes.data(), scales.data(), code_stride, scale_stride};
    cellar::serial_team t;
    coder.encode(t, rows_of<d>(std::as_const(x)), at);
    std::vector<float> y(x.size());
    coder.decode(t, at, rows_of<d>(y));
    for (std::int64_t r = 0; r < count; ++r) {
      for (std::int64_t i = size.codes; i < code_stride; ++i) REQUIRE(codes[std::size_t(r * code_stride + i)] == std::byte{0xab});
      for (std::int64_t i = size.scales; i < scale_stride; ++i) REQUIRE(scales[std::size_t(r * scale_stride + i)] == std::byte{0xcd});
      auto const *const c = codes.data() + r * code_stride, *const s = scales.data() + r * scale_stride;
      coded_row const row{rows[std::size_t(r)], {c, c + size.codes}, {s, s + size.scales}, {y.begin() + r * d, y.begin() + (r + 1) * d}};
      for (float const v : row.y) REQUIRE(std::isfinite(v));
      check(dim, row);

      std::vector<std::byte> codes1(std::size_t(size.codes), std::byte{0xff}), scales1(std::size_t(size.scales) + 1, std::byte{0xff});
      coder.encode(t, cellar::matrix_view<float const>{row.x.data(), 1, d, d}, {codes1.data(), scales1.data(), 0, 0});  // alone, and of any width
      scales1.pop_back();
      REQUIRE(codes1 == row.codes);
      REQUIRE(scales1 == row.scales);
    }
  });
}

/// scores[lane] = q . decode(row), up to the rounding of f32 sums of head_dim terms of that size.
template <class Codec>
void check_scores(Codec const& coder) {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    random_numbers r(6);
    constexpr int lanes = 16;
    auto x = r.normals(lanes * d);
    auto const q = r.normals(d);
    for (std::size_t c = 0; c < d; ++c) {
      x[2 * d + c] = 0;
      x[3 * d + c] += 50;
      x[4 * d + c] *= 1e-10f;
    }
    auto const size = coder.bytes(d);
    std::vector<std::byte> codes(std::size_t(lanes * size.codes)), scales(std::size_t(lanes * size.scales) + 1), tile(codes.size());
    cellar::serial_team t;
    cellar::row_parts<std::byte> const at{codes.data(), scales.data(), size.codes, size.scales};
    coder.encode(t, rows_of<d>(std::as_const(x)), at);
    for (int lane = 0; lane < lanes; ++lane)
      for (std::int64_t i = 0; i < size.codes; ++i) tile[std::size_t(i * lanes + lane)] = codes[std::size_t(lane * size.codes + i)];
    std::vector<float> y(x.size()), scores(lanes);
    coder.decode(t, at, rows_of<d>(y));
    REQUIRE(coder.query_bytes(d) % 16 == 0);
    std::vector<std::byte> prepared(std::size_t(coder.query_bytes(d)));
    coder.template prepare_query<d>(t, q.data(), prepared.data());
    coder.template score_codes<d>(t, prepared.data(), tile.data(), scales.data(), lanes, scores.data());
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      double expected = 0, queries = 0, most = 0;
      for (std::size_t c = 0; c < d; ++c) {
        expected += double(q[c]) * double(y[lane * d + c]);
        queries += std::abs(double(q[c]));
        most = std::max(most, std::abs(double(y[lane * d + c])));
      }
      REQUIRE(std::abs(double(scores[lane]) - expected) <= (d + 8) * 0x1p-24 * queries * most);
    }
  });
}
