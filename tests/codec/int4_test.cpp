#include "cellar/codec/int4.hpp"

#include "codec/laws.hpp"

using namespace cellar;

namespace {

template <int Group, class Scale>
void check_int4() {
  codec::int4<Group, Scale> const coder;
  check_codec_laws(
      coder,
      [](std::int64_t channels) {
        return row_bytes{channels / 2, (channels + Group - 1) / Group * 2 * std::int64_t(sizeof(Scale))};
      },
      [](auto dim, coded_row const& row) {
        constexpr int d = dim;
        double const unit = std::is_same_v<Scale, float> ? 0x1p-23 : std::is_same_v<Scale, bf16> ? 0x1p-7 : 0x1p-10;
        double const least = std::is_same_v<Scale, float> ? 0x1p-149 : std::is_same_v<Scale, bf16> ? 0x1p-133 : 0x1p-24;
        for (std::size_t begin = 0; begin < d; begin += Group) {
          std::size_t const end = std::min<std::size_t>(begin + Group, d);
          double low = 1e300, high = -1e300;
          for (std::size_t c = begin; c < end; ++c) {
            low = std::min(low, double(row.x[c]));
            high = std::max(high, double(row.x[c]));
          }
          auto const* const scales = row.scales.data() + begin / Group * 2 * sizeof(Scale);
          double const s = double(to_float(detail::load<Scale>(scales))), m = double(to_float(detail::load<Scale>(scales + sizeof(Scale))));
          REQUIRE(m <= low);
          REQUIRE(m >= low - std::abs(low) * unit - least);
          REQUIRE(s <= (high - m) / 15 * (1 + unit + 1e-6) + least);
          for (std::size_t c = begin; c < end; ++c) {
            int const code = int(row.codes[c / 2]) >> (c % 2 ? 4 : 0) & 15;
            double const x = double(row.x[c]), y = double(row.y[c]), rounding = 0x1p-22 * (std::abs(m) + 15 * s) + 0x1p-144;
            REQUIRE(std::abs(y - (m + s * code)) <= rounding);
            REQUIRE(std::abs(y - x) <= s / 2 + rounding);
          }
        }
      });
  check_scores(coder);
}

}  // namespace

TEST_CASE("int4: no channel is off by more than half a step of its group, whole groups and short ones") {
  check_int4<32, f16>();
  check_int4<32, bf16>();
  check_int4<64, float>();
  check_int4<16, f16>();
  check_int4<256, bf16>();
  check_int4<7, f16>();
}

TEST_CASE("int4 stores what its definition says, the even channel in the low half") {
  std::vector<float> const x{-3, 12, 0, 1, 4.5f, 5.5f, 11, -2};  // s = 1, m = -3
  std::vector<std::byte> bytes(4 + 4);
  serial_team t;
  codec::int4<32> const coder;
  coder.encode(t, rows_of<8>(x), row_parts<std::byte>{bytes.data(), bytes.data() + 4, 4, 4});
  CHECK(to_float(detail::load<f16>(bytes.data() + 4)) == 1.0f);
  CHECK(to_float(detail::load<f16>(bytes.data() + 6)) == -3.0f);
  CHECK(std::vector<std::byte>(bytes.begin(), bytes.begin() + 4) ==
        std::vector<std::byte>{std::byte{0xf0}, std::byte{0x43}, std::byte{0x88}, std::byte{0x1e}});  // ties: 7.5 and 8.5 to 8
}

TEST_CASE("int4 loses nothing of a constant that the scale holds, and reaches what it does not hold") {
  serial_team t;
  for (float const value : {0.0f, -7.25f, 3.0f, 7.3f, -7.3f, 1e-6f}) {
    std::vector<float> const x(64, value);
    std::vector<float> y(64);
    std::vector<std::byte> bytes(64);
    codec::int4<> const coder;
    coder.encode(t, rows_of<64>(x), row_parts<std::byte>{bytes.data(), bytes.data() + 32, 32, 8});
    coder.decode(t, row_parts<std::byte const>{bytes.data(), bytes.data() + 32, 32, 8}, rows_of<64>(y));
    for (float const v : y) CHECK(v == Approx(value).epsilon(0x1p-14).margin(0x1p-25));
  }
}
