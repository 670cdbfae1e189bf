// Which scheme, and how much of it, fits a machine: bytes and time of a step predicted from the types, quality as text2json measured it.
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "choose_scheme/predict.hpp"
#include "text2json/report.hpp"

namespace {

using namespace choose_scheme;

/// What reports say of a scheme at a budget.
struct evidence {
  double share = 0, kl = 0;
  std::optional<double> hit_rate;
};

/// Errors  std::runtime_error, naming the file
std::multimap<std::string, evidence> read_reports(std::vector<std::string> const& paths) {
  std::multimap<std::string, evidence> all;
  for (std::string const& path : paths) {
    std::ifstream in(path);
    if (!in) throw std::runtime_error("The report " + path + " cannot be read.");
    try {
      auto const root = nlohmann::json::parse(in);
      for (auto const& s : root.at("schemes")) {
        evidence e{root.at("budget").get<double>(), s.at("kl").is_null() ? NAN : s.at("kl").get<double>(), std::nullopt};
        if (auto const& rate = s.at("hit_rate"); !rate.is_null()) e.hit_rate = rate.get<double>();
        all.emplace(s.at("name").get<std::string>(), e);
      }
    } catch (nlohmann::json::exception const& e) {
      throw std::runtime_error("The report " + path + " is none that text2json wrote: " + e.what());
    }
  }
  return all;
}

/// The report of that scheme whose budget is within a tenth of the share.
evidence const* find(std::multimap<std::string, evidence> const& reports, prediction const& p) {
  auto const [first, last] = reports.equal_range(p.name);
  for (auto i = first; i != last; ++i)
    if (p.share == 0 || p.share == 1 || std::abs(i->second.share / p.share - 1) < 0.1) return &i->second;
  return nullptr;
}

struct options {
  workload of{.shape = {.layers = 32, .query_heads = 32, .kv_heads = 8, .head_dim = 128}, .context = 131072, .sequences = 1};
  double near_gib = 4, link = 25, memory = 2000, hit_rate = 0, kl = 0.05;
  std::vector<double> shares{0.0078125, 0.015625, 0.03125, 0.0625, 0.125};
  std::vector<std::string> reports;
  std::string svg = "choose_scheme.svg";
};

std::vector<prediction> predict_for(options const& o) {
  machine const m{o.link * 1e9, o.memory * 1e9};
  auto const run = [&]<int D>(std::integral_constant<int, D>) { return predict_all<D>(o.of, m, o.shares, o.hit_rate); };
  switch (o.of.shape.head_dim) {
    case 64:
      return run(std::integral_constant<int, 64>{});
    case 80:
      return run(std::integral_constant<int, 80>{});
    case 96:
      return run(std::integral_constant<int, 96>{});
    case 128:
      return run(std::integral_constant<int, 128>{});
    case 256:
      return run(std::integral_constant<int, 256>{});
    default:
      throw std::invalid_argument("--head-dim is one of 64, 80, 96, 128 and 256 here; the library takes any multiple of 8 up to 256.");
  }
}

bool draw(std::vector<prediction> const& all, double near_gib, std::string const& svg) {
  std::string script = "set terminal svg size 900,600 background rgb 'white'\nset output " + text2json::in_quotes(svg) +
                       "\nset logscale xy\nset format x '%g'\nset grid\nset key outside\nset xlabel 'near memory, GiB (less than a twentieth of --near is "
                       "drawn at that)'\nset ylabel 'predicted attention of a step, ms'\n" +
                       "set arrow from " + std::to_string(near_gib) + ", graph 0 to " + std::to_string(near_gib) + ", graph 1 nohead dt 2\nplot ";
  std::string data;
  int types = 0;  // colours repeat after eight, points do not
  for (std::size_t i = 0; i < all.size();) {
    std::size_t const first = i;
    for (; i < all.size() && all[i].name == all[first].name; ++i)
      data += std::to_string(std::max(near_gib / 20, double(all[i].near) / (1 << 30))) + " " + std::to_string(std::max(1e-6, 1e3 * all[i].seconds)) + "\n";
    data += "e\n";
    script += std::string(first ? ", " : "") + "'-' with linespoints ps 0.8 pt " + std::to_string(++types) + " title " + text2json::in_quotes(all[first].name) +
              " noenhanced";
  }
  return text2json::gnuplot(script + "\n" + data);
}

int run(options const& o) {
  cellar::validate(o.of.shape);
  auto const reports = read_reports(o.reports);
  auto all = predict_for(o);
  for (prediction& p : all)
    if (evidence const* const e = find(reports, p); e && e->hit_rate) {  // measured, in place of what was assumed
      options with = o;
      with.hit_rate = *e->hit_rate;
      with.shares = {p.share};
      for (prediction const& q : predict_for(with))
        if (q.name == p.name) p = q;
    }
  all.push_back(all_near(o.of, {o.link * 1e9, o.memory * 1e9}));

  std::printf("%d layers, %d query and %d KV heads of %d, %d sequences of %lld tokens; near %.3g GiB, link %.4g GB/s, memory %.4g GB/s\n", o.of.shape.layers,
              o.of.shape.query_heads, o.of.shape.kv_heads, o.of.shape.head_dim, o.of.sequences, static_cast<long long>(o.of.context), o.near_gib, o.link,
              o.memory);
  std::printf(
      "| scheme | fetched | near GiB | fits | far GiB | moved MB/step | hit rate | ms/step | overlapped | KL |\n|---|---|---|---|---|---|---|---|---|---|\n");
  auto const gib = [](std::int64_t bytes) { return double(bytes) / (1 << 30); };
  prediction const* best = nullptr;
  evidence const* best_evidence = nullptr;
  for (prediction const& p : all) {
    evidence const* const e = find(reports, p);
    bool const fits = gib(p.near) <= o.near_gib;
    std::string const kl = e && !std::isnan(e->kl) ? std::to_string(e->kl) : "";
    std::printf("| %s | %.3g %% | %.3f | %s | %.3f | %.1f | %.2f | %.3f | %.3f | %s |\n", p.name.c_str(), 100 * p.share, gib(p.near), fits ? "yes" : "no",
                gib(p.far), double(p.moved) * (1 - p.hit_rate) / 1e6, p.hit_rate, 1e3 * p.seconds, 1e3 * p.seconds_best, kl.c_str());
    if (!fits || p.share == 0) continue;  // what reads nothing far is no substitute for what does
    if (!reports.empty() && !(e && e->kl <= o.kl)) continue;
    if (!best || p.seconds < best->seconds) {
      best = &p;
      best_evidence = e;
    }
  }
  if (!best && reports.empty())
    std::printf("\nNothing fits %.3g GiB. Give it more with --near, fewer --sequences, or smaller --shares.\n", o.near_gib);
  else if (!best)
    std::printf("\nNothing that fits %.3g GiB was measured at a KL of %.3g or less: raise --near or --kl, or measure more budgets with text2json.\n",
                o.near_gib, o.kl);
  else if (best_evidence)
    std::printf("\n%s at %.3g %%: the fastest that fits of those within a KL of %.3g nats a token of dense attention.\n", best->name.c_str(), 100 * best->share,
                o.kl);
  else
    std::printf("\n%s at %.3g %% is the fastest that fits. Nothing is said of its quality: give --report, by text2json on your model and task.\n",
                best->name.c_str(), 100 * best->share);
  if (!o.svg.empty())
    std::printf(draw(all, o.near_gib, o.svg) ? "The trade-off is drawn in %s.\n" : "%s is not drawn: gnuplot is not here, or failed.\n", o.svg.c_str());
  return best ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  options o;
  CLI::App app{"Predicts what each scheme takes on a machine, and names one that fits."};
  app.option_defaults()->always_capture_default();
  app.add_option("--layers", o.of.shape.layers, "of the model")->check(CLI::PositiveNumber);
  app.add_option("--query-heads", o.of.shape.query_heads)->check(CLI::PositiveNumber);
  app.add_option("--kv-heads", o.of.shape.kv_heads)->check(CLI::PositiveNumber);
  app.add_option("--head-dim", o.of.shape.head_dim, "64, 80, 96, 128 or 256");
  app.add_option("--context", o.of.context, "tokens of a sequence")->check(CLI::PositiveNumber);
  app.add_option("--sequences", o.of.sequences, "decoded in one batch")->check(CLI::PositiveNumber);
  app.add_option("--near", o.near_gib, "GiB of near memory for the cache")->check(CLI::PositiveNumber);
  app.add_option("--link", o.link, "GB/s from far memory; 25: PCIe 4.0 x16")->check(CLI::PositiveNumber);
  app.add_option("--memory", o.memory, "GB/s of near memory; 2000: an A100")->check(CLI::PositiveNumber);
  app.add_option("--hit-rate", o.hit_rate, "of what a step selects, near already; a report's own replaces it")->check(CLI::Range(0.0, 1.0));
  app.add_option("--shares", o.shares, "of the prompt's tokens, fetched a step and KV head")->delimiter(',')->check(CLI::Range(1e-6, 1.0));
  app.add_option("--report", o.reports, "report.json of text2json, each at its own budget")->delimiter(',');
  app.add_option("--kl", o.kl, "nats a token that a report may say a scheme is off")->check(CLI::NonNegativeNumber);
  app.add_option("--svg", o.svg, "a plot of time against near memory; empty: none");
  CLI11_PARSE(app, argc, argv);
  try {
    return run(o);
  } catch (std::exception const& e) {
    std::cerr << e.what() << '\n';
    return 2;
  }
}
