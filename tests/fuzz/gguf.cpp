// A model file of any bytes is read whole and run, or refused with a sentence: metadata, tensors, tokenizer, model.
#include <cstdint>
#include <span>
#include <stdexcept>

#include "engine/gguf.hpp"
#include "engine/model.hpp"
#include "engine/tokenizer.hpp"

namespace {

/// What is thrown on purpose; anything else is a defect.
template <class F>
void or_refused(F const& f) {
  try {
    f();
  } catch (std::runtime_error const&) {
  } catch (std::invalid_argument const&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  or_refused([&] {
    engine::gguf_file const file(std::as_bytes(std::span(data, size)), "fuzzed");
    for (auto const& name : file.tensor_names()) or_refused([&] { file.read(name); });
    or_refused([&] {
      engine::model const model(file, 1);
      if (model.config().vocabulary < 3) return;
      engine::staged_prompt staged;
      model.prefill(std::vector<int>{2, 0, 1}, staged);
    });
    or_refused([&] {
      engine::tokenizer const tokenizer(file);
      std::string text = "The <s>cat's 12 caf\xc3\xa9s\n\n  {\"a\": [1]}</s>";
      for (int id = 0; id < tokenizer.size() && text.size() < 2000; ++id) {
        tokenizer.is_end(id);
        text += tokenizer.token_bytes(id);
      }
      for (bool const parse_special : {true, false}) or_refused([&] { tokenizer.decode(tokenizer.encode(text, parse_special)); });
    });
  });
  return 0;
}
