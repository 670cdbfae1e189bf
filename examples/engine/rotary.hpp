#pragma once
#include <cstdint>
#include <vector>

#include "engine/gguf.hpp"

namespace engine {

enum class rotary_pairing { adjacent, half_split };  // channels (2i, 2i + 1), or (i, i + head_dim / 2)

/// How far positions turn the channels of a head.
struct rotary_angles {
  std::vector<double> inverse_frequencies;  ///< Angle a position, of each channel pair.
  double magnitude = 1;                     ///< Factor of what is turned.
};

/// theta^(-2i / head_dim): no scaling.
rotary_angles plain_angles(int head_dim, double theta);

/// Angles as the model file scales them:
///
///     linear            all divided by a factor
///     yarn              those that turn seldom within the original context are divided by a factor, those that turn often are not, and what is between
///                       is in between; the magnitude grows with the factor
///     rope_freqs.weight each divided by its own factor (Llama 3)
///
/// Errors  std::runtime_error with a sentence for another scaling, or one without its numbers
rotary_angles scaled_angles(gguf_file const& file, int head_dim, double theta);

/// Rotates `rows` vectors of `heads` heads in place. cosines, sines [rows, head_dim / 2].
void rotate(float* x, std::int64_t rows, int heads, int head_dim, rotary_pairing pairing, float const* cosines, float const* sines);

}  // namespace engine
