#pragma once
#include <vector>

/// Log-probabilities after the last token of each text, by an independent forward pass in NumPy (f32 weights of the same file).
struct golden_model {
  char const* text;
  struct next {
    int token;
    float log_probability;
  };
  std::vector<next> smollm, qwen;  // the five likeliest, and three others
};
inline std::vector<golden_model> const golden_models = {
    {"The capital of France is Paris, and the capital of Italy is Rome. The capital of Spain is",
     {{28030, -0.2382f}, {30010, -2.5928f}, {7476, -2.8640f}, {597, -3.2510f}, {5145, -5.3494f}, {100, -22.6324f}, {2000, -20.7136f}, {30000, -27.2280f}},
     {{24081, -0.1614f}, {26937, -2.6847f}, {80701, -4.8144f}, {60249, -4.9924f}, {7148, -5.5454f}, {100, -15.7018f}, {2000, -21.0405f}, {30000, -23.3710f}}},
    {"int main() {\n  for (int i = 0; i < 10; ++i) std::cout << i",
     {{22646, -0.1117f}, {43, -2.4896f}, {1232, -5.2688f}, {1672, -5.3969f}, {216, -5.7091f}, {100, -16.8503f}, {2000, -21.7732f}, {30000, -21.1330f}},
     {{1115, -0.2078f}, {280, -2.2876f}, {26, -2.9630f}, {488, -4.5671f}, {353, -5.2005f}, {100, -19.9911f}, {2000, -20.4835f}, {30000, -20.0852f}}},
    {"[{\"name\": \"Oslo Airport\", \"code\": \"OSL\"}, {\"name\": \"Riga Airport\", \"code\": \"",
     {{66, -0.9768f}, {3911, -2.6401f}, {3256, -2.8459f}, {45249, -2.9409f}, {30113, -3.1105f}, {100, -13.6376f}, {2000, -23.5332f}, {30000, -17.9780f}},
     {{49, -0.1938f}, {32360, -2.8317f}, {78263, -3.1205f}, {4305, -4.5381f}, {12173, -4.5765f}, {100, -22.7961f}, {2000, -20.0892f}, {30000, -24.2223f}}},
};
