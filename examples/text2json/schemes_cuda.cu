#include "cellar/cellar.cuh"
#include "text2json/scheme_of.hpp"

namespace text2json {

std::unique_ptr<scheme_on_prompt> make_cuda_scheme(std::string const& name, engine::model const& model, engine::staged_prompt& prompt, int sequences,
                                                   std::int64_t generated_tokens, allowance const& allowed) {
  static cudaStream_t const stream = [] {  // of the program
    cudaStream_t s{};
    cellar::cuda::check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    return s;
  }();
  return make_scheme_on<compiled_for<CELLAR_SCHEMES, CELLAR_HEAD_DIMS>>(cellar::cuda::executor(stream), name, model, prompt, sequences, generated_tokens,
                                                                        allowed);
}

}  // namespace text2json
