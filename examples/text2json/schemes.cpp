#include "text2json/schemes.hpp"

#include "text2json/scheme_of.hpp"

namespace text2json {

std::vector<std::string> const& scheme_names() {
  static std::vector<std::string> const names = []<class... Named>(std::type_identity<std::tuple<Named...>>) {
    return std::vector<std::string>{std::string(Named::name)...};
  }(std::type_identity<all_schemes<64>>{});
  return names;
}

bool needs_queries(std::string const& name) { return needs_queries<compiled_for<"", CELLAR_HEAD_DIMS>>(name); }

std::unique_ptr<scheme_on_prompt> make_scheme(std::string const& name, engine::model const& model, engine::staged_prompt& prompt, int sequences,
                                              std::int64_t generated_tokens, allowance const& allowed) {
  return make_scheme_by<compiled_for<"", CELLAR_HEAD_DIMS>>(
      name, model, allowed, [&]<int HeadDim>(std::integral_constant<int, HeadDim>, cellar::budget const& budget) {
        std::unique_ptr<scheme_on_prompt> made;
        [&]<int... Part>(std::integer_sequence<int, Part...>) {
          static_cast<void>(((made = make_scheme_of_part<HeadDim, Part>(name, model, prompt, sequences, generated_tokens, budget)) || ...));
        }
        (std::make_integer_sequence<int, scheme_parts>{});
        return made;
      });
}

}  // namespace text2json
