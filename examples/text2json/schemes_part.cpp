#include "text2json/scheme_of.hpp"

namespace text2json {

template <int HeadDim, int Part>
std::unique_ptr<scheme_on_prompt> make_scheme_of_part(std::string const& name, engine::model const& model, engine::staged_prompt& prompt, int sequences,
                                                      std::int64_t generated_tokens, cellar::budget const& budget) {
  std::unique_ptr<scheme_on_prompt> made;
  auto const make = [&]<class Named, std::size_t Place>(std::type_identity<Named>, std::integral_constant<std::size_t, Place>) {
    if constexpr (Place % scheme_parts == Part && compiled_for<CELLAR_SCHEMES>::has(Named::name))
      if (name == Named::name)
        made = std::make_unique<scheme_of<typename Named::type, cellar::host::executor>>(cellar::host::executor(model.threads()), model, prompt, sequences,
                                                                                         generated_tokens, budget);
  };
  [&]<class... Named, std::size_t... Place>(std::type_identity<std::tuple<Named...>>, std::index_sequence<Place...>) {
    (make(std::type_identity<Named>{}, std::integral_constant<std::size_t, Place>{}), ...);
  }(std::type_identity<all_schemes<HeadDim>>{}, std::make_index_sequence<std::tuple_size_v<all_schemes<HeadDim>>>{});
  return made;
}
template std::unique_ptr<scheme_on_prompt> make_scheme_of_part<CELLAR_HEAD_DIM, CELLAR_PART>(std::string const&, engine::model const&, engine::staged_prompt&,
                                                                                             int, std::int64_t, cellar::budget const&);

}  // namespace text2json
