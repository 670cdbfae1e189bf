#include "cellar/codec/identity.hpp"

#include "catch.hpp"
#include "random.hpp"
#include "sweep.hpp"

using namespace cellar;

namespace {

template <class Scalar>
void check_identity() {
  for_head_dims([&](auto dim) {
    constexpr int d = dim;
    random_numbers r(d);
    constexpr std::int64_t rows = 7;
    auto x = r.normals(rows * d, 10);
    codec::identity<Scalar> const coder;
    REQUIRE(coder.bytes(d).codes == std::int64_t(d * sizeof(Scalar)));
    REQUIRE(coder.bytes(d).scales == 0);
    std::int64_t const stride = coder.bytes(d).codes + 5;
    std::vector<std::byte> bytes(std::size_t(rows * stride), std::byte{0x55});
    serial_team t;
    row_parts<std::byte> const at{bytes.data(), nullptr, stride, 0};
    coder.encode(t, rows_of<d>(std::as_const(x)), at);
    std::vector<float> y(x.size()), z(x.size());
    coder.decode(t, at, rows_of<d>(y));
    for (std::size_t i = 0; i < x.size(); ++i) REQUIRE(y[i] == to_float(from_float<Scalar>(x[i])));
    for (std::int64_t row = 0; row < rows; ++row) REQUIRE(bytes[std::size_t(row * stride + stride - 1)] == std::byte{0x55});
    coder.encode(t, rows_of<d>(std::as_const(y)), at);  // what is representable comes back as it is
    coder.decode(t, at, rows_of<d>(z));
    REQUIRE(y == z);

    auto const q = r.normals(d);
    constexpr int lanes = 8;
    std::vector<std::byte> tile(std::size_t(lanes * d) * sizeof(Scalar)), prepared(std::size_t(coder.query_bytes(d)));
    for (std::int64_t lane = 0; lane < 7; ++lane)
      for (int c = 0; c < d; ++c)
        std::copy_n(bytes.data() + lane * stride + c * std::int64_t(sizeof(Scalar)), sizeof(Scalar),
                    tile.data() + (c * lanes + lane) * std::int64_t(sizeof(Scalar)));
    std::vector<float> scores(lanes);
    coder.template prepare_query<d>(t, q.data(), prepared.data());
    coder.template score_codes<d>(t, prepared.data(), tile.data(), nullptr, lanes, scores.data());
    for (std::size_t lane = 0; lane < 7; ++lane) {
      double expected = 0;
      for (std::size_t c = 0; c < d; ++c) expected += double(q[c]) * double(y[lane * d + c]);
      REQUIRE(double(scores[lane]) == Approx(expected).margin(1e-3));
    }
  });
}

}  // namespace

TEST_CASE("identity keeps f32") { check_identity<float>(); }
TEST_CASE("identity keeps f16") { check_identity<f16>(); }
TEST_CASE("identity keeps bf16") { check_identity<bf16>(); }
