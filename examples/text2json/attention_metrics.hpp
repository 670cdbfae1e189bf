#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace text2json {

/// Keys and values of one KV head, a pointer to [head_dim] for each token.
struct attended_rows {
  std::vector<float const*> keys, values;
};

/// A scheme's attention beside exact dense attention of the same queries over the same rows.
struct attention_comparison {
  double error = 0;            ///< Relative L2 error of the output, over the group.
  double captured = 0;         ///< Dense attention on the attended tokens, mean over the group.
  double captured_far = 0;     ///< The same on the far ones, sum over the group.
  double all_far = 0;          ///< Dense attention on all far tokens, sum over the group.
  std::vector<double> missed;  ///< [head of the group]: its dense attention on tokens that were not attended.
  double oracle = 0;           ///< As captured, for the `budget` far tokens of the largest weight (maximum over the group of softmaxes), beside all near ones.
};

/// Compares one KV head's query group; the softmax scale is 1 / sqrt(head_dim).
///
/// Shapes      queries, outputs [group, head_dim] | rows: `attended.size()` tokens, of which the first far_tokens are far
/// Requires    budget <= far_tokens
/// Complexity  O(group * tokens * head_dim); allocates
attention_comparison compare_attention(int head_dim, int group, float const* queries, float const* outputs, attended_rows const& rows,
                                       std::vector<bool> const& attended, std::int64_t far_tokens, std::int64_t budget);

}  // namespace text2json
