#pragma once
#include <vector>

#include "catch.hpp"
#include "cellar/cellar.hpp"
#include "cellar/cuda/append.hpp"
#include "random.hpp"

/// Codecs on a device against the host's: codes byte by byte, decoded rows, and pieces of rows, on whatever device runs them.
namespace codec_laws {

using namespace cellar;

constexpr int head_dim = 96;
constexpr i64 rows = 70;

template <class Codec>
struct both_ways {
  float const* x;
  std::byte* codes;        // encoded here
  std::byte const* given;  // encoded by the host
  float *decoded, *pieces;
  int offset;  // of the rows from an aligned address

  template <team Team>
  CELLAR_HD void operator()(Team& t, cuda::grid_place) const {
    Codec const codec{};
    row_bytes const size = codec.bytes(head_dim);
    i64 const stride = size.codes + size.scales;
    codec.encode(t, matrix_view<float const, head_dim>{x, rows}, row_parts<std::byte>{codes + offset, codes + offset + size.codes, stride, stride});
    row_parts<std::byte const> const from{given + offset, given + offset + size.codes, stride, stride};
    codec.decode(t, from, matrix_view<float, head_dim>{decoded, rows});
    if constexpr (piecewise_codec<Codec>)
      for (i64 i = t.rank(); i < rows * head_dim / 8; i += t.size()) {
        i64 const r = i / (head_dim / 8);
        int const first = int(i % (head_dim / 8)) * 8;
        std::uint32_t words[Codec::piece_words];
        codec.read_piece(from.codes + r * stride, from.scales + r * stride, head_dim, first, words);
        codec.decode_piece(words, head_dim, first, pieces + i * 8);
      }
  }
};

template <class Codec, class Device>
void check(Device const& on, char const* name, double most_other_codes = 0) {
  random_numbers random(4);
  Codec const codec{};
  row_bytes const size = codec.bytes(head_dim);
  i64 const stride = size.codes + size.scales;
  auto const x = random.normals(rows * head_dim, 2);
  for (int const offset : {0, 1, 2, 6}) {
    std::vector<std::byte> codes(std::size_t(rows * stride + 16), std::byte{0xee});
    std::vector<float> decoded(x.size()), rotated(x.size());
    serial_team serial;
    row_parts<std::byte> const to{codes.data() + offset, codes.data() + offset + size.codes, stride, stride};
    codec.encode(serial, rows_of<head_dim>(x), to);
    codec.decode(serial, row_parts<std::byte const>(to), rows_of<head_dim>(decoded));
    rotated = decoded;
    if constexpr (rotating_codec<Codec, head_dim>) codec.decode_rotated(serial, row_parts<std::byte const>(to), rows_of<head_dim>(rotated));
    auto device_x = on.upload(std::vector<float>(x));
    auto device_codes = on.upload(std::vector<std::byte>(codes.size(), std::byte{0xee})), given = on.upload(std::vector<std::byte>(codes));
    auto device_decoded = on.template allocate<float>(rows * head_dim), device_pieces = on.template allocate<float>(rows * head_dim);
    on.template launch<128>({}, 0, both_ways<Codec>{device_x.data(), device_codes.data(), given.data(), device_decoded.data(), device_pieces.data(), offset});
    std::vector<std::byte> codes2(codes.size());
    std::vector<float> decoded2(x.size()), pieces(x.size());
    on.download(codes2.data(), device_codes.data(), i64(codes2.size()));
    on.download(decoded2.data(), device_decoded.data(), i64(decoded2.size() * sizeof(float)));
    on.download(pieces.data(), device_pieces.data(), i64(pieces.size() * sizeof(float)));
    i64 others = 0;
    for (std::size_t i = 0; i < codes.size(); ++i) others += codes[i] != codes2[i];
    INFO(name << ", at an offset of " << offset << ": " << others << " of " << codes.size() << " bytes of codes differ");
    CHECK(double(others) <= most_other_codes * double(codes.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      REQUIRE(decoded2[i] == Approx(decoded[i]).margin(1e-5));
      if constexpr (piecewise_codec<Codec>) REQUIRE(pieces[i] == Approx(rotated[i]).margin(1e-5));
    }
  }
}

template <class Device>
void all(Device const& on) {
  check<codec::identity<float>>(on, "f32");
  check<codec::identity<f16>>(on, "f16");
  check<codec::identity<bf16>>(on, "bf16");
  // A product and a sum rounded once where the host rounds twice: a few codes fall to the other side.
  check<codec::int8<>>(on, "int8", 0.005);
  check<codec::int8<float>>(on, "int8, f32 scales", 0.005);
  check<codec::fp8_e4m3<>>(on, "fp8", 0.005);
  check<codec::fp8_e4m3<codec::unscaled>>(on, "fp8, unscaled");
  check<codec::int4<>>(on, "int4", 0.005);
  check<codec::int4<12, float>>(on, "int4, groups that pieces cross", 0.005);
  check<codec::nvfp4>(on, "nvfp4", 0.005);
  check<codec::higgs<2, 256>>(on, "higgs 2, 256", 0.005);
  check<codec::higgs<4, 256, 1>>(on, "higgs 4, 256", 0.005);
  check<codec::higgs<2, 16>>(on, "higgs 2, 16", 0.005);
}

}  // namespace codec_laws
