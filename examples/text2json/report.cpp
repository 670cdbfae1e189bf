#include "text2json/report.hpp"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace text2json {

namespace {

using nlohmann::ordered_json;

std::string number(double x, int decimals) {
  if (std::isnan(x)) return "-";
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, x);
  return text;
}

ordered_json figure(double x) { return std::isnan(x) ? ordered_json(nullptr) : ordered_json(x); }

/// A table in Markdown, its first row the names of the columns.
std::string text_of(std::vector<std::vector<std::string>> const& rows) {
  std::string text;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (std::size_t c = 0; c < rows[i].size(); ++c) {
      std::size_t width = 0;
      for (auto const& row : rows) width = std::max(width, row[c].size());
      std::string const pad(width - rows[i][c].size(), ' ');
      text += "| " + (c == 0 ? rows[i][c] + pad : pad + rows[i][c]) + " ";
    }
    text += "|\n";
    if (i == 0) {
      for (std::size_t c = 0; c < rows[0].size(); ++c) text += c == 0 ? "|---" : "|---:";
      text += "|\n";
    }
  }
  return text;
}

}  // namespace

std::string missed_table_of(report const& r) {
  std::vector<std::vector<std::string>> rows{{"scheme", "missed", "says", "rank correlation", "95 %"}};
  for (int c = 0; c < missed_sums::classes; ++c)
    rows[0].push_back((c == 0 ? "says to " : "to ") + number(missed_sums::most_said[c], c < 3 ? 3 : c < 6 ? 2 : 1));
  for (scheme_summary const& s : r.schemes) {
    if (s.missed.all().count == 0) continue;
    estimate const& e = s.missed_rank_correlation;
    rows.push_back({s.name, number(s.missed_real.mean, 4), number(s.missed_said.mean, 4), number(e.mean, 3), number(e.low, 3) + " to " + number(e.high, 3)});
    for (auto const& [count, said, real] : s.missed.by_class)  // what was missed, and in how many cases of a hundred
      rows.back().push_back(count == 0 ? "-" : number(real / double(count), 3) + " (" + number(100 * double(count) / double(s.missed.all().count), 0) + ")");
  }
  return rows.size() > 1 ? text_of(rows) : "";
}

std::string difference_table_of(std::string const& other, std::vector<scheme_difference> const& differences) {
  std::vector<std::vector<std::string>> rows{{"less " + other, "KL", "95 %", "retained", "95 %", "lookups", "95 %", "output error", "95 %"}};
  for (scheme_difference const& d : differences) {
    rows.push_back({d.name});
    for (auto const& [e, decimals] : {std::pair(&d.kl, 4), std::pair(&d.retained, 3), std::pair(&d.lookup_accuracy, 3), std::pair(&d.output_error, 4)}) {
      rows.back().push_back(number(e->mean, decimals));
      rows.back().push_back(number(e->low, decimals) + " to " + number(e->high, decimals));
    }
  }
  return text_of(rows);
}

std::string table_of(report const& r) {
  std::vector<std::vector<std::string>> rows{{"scheme", "lookups", "95 %", "retained", "95 %", "agreement", "KL", "NLL", "score", "output error", "mass",
                                              "far mass", "oracle", "summary B", "always near B", "generated B", "far B", "moved kB/step", "ms/step"}};
  for (scheme_summary const& s : r.schemes) {
    auto const interval = [](estimate const& e) { return number(e.low, 3) + " to " + number(e.high, 3); };
    rows.push_back({s.name, number(s.lookup_accuracy.mean, 3), interval(s.lookup_accuracy), number(s.retained.mean, 3), interval(s.retained),
                    number(s.agreement.mean, 3), number(s.kl.mean, 4), number(s.nll.mean, 3), number(s.score.mean, 1), number(s.output_error.mean, 4),
                    number(s.captured_mass.mean, 3), number(s.captured_far_mass.mean, 3), number(s.oracle_mass.mean, 3), number(s.summary_bytes, 1),
                    number(s.always_near_bytes, 1), number(s.generated_bytes, 1), number(s.far_bytes, 1), number(s.moved_bytes / 1000, 1),
                    number(1000 * s.seconds, 1)});
  }
  return text_of(rows);
}

void write_json(report const& r, std::filesystem::path const& path) {
  ordered_json root{{"model", r.model},
                    {"task", r.task},
                    {"device", r.device},
                    {"threads", r.threads},
                    {"seed", r.seed},
                    {"budget", r.budget},
                    {"documents", r.documents},
                    {"documents_left_out", r.left_out},
                    {"prompt_tokens", r.prompt_tokens},
                    {"answer_tokens", r.answer_tokens},
                    {"lookups", r.lookups},
                    {"compiler", r.compiler},
                    {"commit", r.commit}};
  root["schemes"] = ordered_json::array();
  for (scheme_summary const& s : r.schemes) {
    ordered_json one{{"name", s.name}};
    auto const add = [&](char const* name, estimate const& e) {
      one[name] = figure(e.mean);
      one[std::string(name) + "_interval"] = {figure(e.low), figure(e.high)};
    };
    add("lookup_accuracy", s.lookup_accuracy);
    add("retained", s.retained);
    add("field_accuracy", s.field_accuracy);
    add("agreement", s.agreement);
    add("kl", s.kl);
    add("nll", s.nll);
    add("score", s.score);
    add("output_error", s.output_error);
    if (s.missed.all().count > 0) {
      add("missed_said", s.missed_said);
      add("missed_real", s.missed_real);
      add("missed_rank_correlation", s.missed_rank_correlation);
      one["missed_classes"] = ordered_json::array();
      for (int c = 0; c < missed_sums::classes; ++c) {
        auto const& [count, said, real] = s.missed.by_class[c];
        one["missed_classes"].push_back(
            {{"most_said", missed_sums::most_said[c]}, {"count", count}, {"said", figure(said / double(count))}, {"real", figure(real / double(count))}});
      }
    }
    one["output_error_by_layer"] = s.output_error_by_layer;
    add("captured_mass", s.captured_mass);
    add("captured_far_mass", s.captured_far_mass);
    add("oracle_mass", s.oracle_mass);
    one["summary_bytes_per_token"] = s.summary_bytes;
    one["always_near_bytes_per_token"] = s.always_near_bytes;
    one["generated_bytes_per_token"] = s.generated_bytes;
    one["pool_bytes_per_token"] = s.pool_bytes;
    one["far_bytes_per_token"] = s.far_bytes;
    one["moved_bytes_per_step"] = s.moved_bytes;
    one["hit_rate"] = figure(s.hit_rate);
    one["seconds_per_step"] = s.seconds;
    one["seconds_per_stage"] = {
        {"score", s.stage_seconds.score}, {"select", s.stage_seconds.select}, {"fetch", s.stage_seconds.fetch}, {"attend", s.stage_seconds.attend}};
    root["schemes"].push_back(std::move(one));
  }
  std::ofstream out(path);
  out << root.dump(2) << '\n';
  if (!out.flush()) throw std::runtime_error("The report " + path.string() + " cannot be written.");
}

std::string in_quotes(std::string const& text) {
  std::string q;
  for (char const c : text) q += c == '\'' ? "''" : std::string(1, c);
  return '\'' + q + '\'';
}

bool gnuplot(std::string const& script) {
  auto* const on_broken_pipe = std::signal(SIGPIPE, SIG_IGN);  // a missing gnuplot is no reason to end
  std::FILE* const pipe = popen("gnuplot 2>/dev/null", "w");
  bool const is_written = pipe && std::fwrite(script.data(), 1, script.size(), pipe) == script.size();
  bool const is_drawn = pipe && pclose(pipe) == 0;
  std::signal(SIGPIPE, on_broken_pipe);
  return is_written && is_drawn;
}

bool draw_plot(report const& r, std::filesystem::path const& svg) {
  std::vector<scheme_summary const*> best;  // first, as the key names them
  for (scheme_summary const& s : r.schemes)
    if (!std::isnan(s.lookup_accuracy.mean)) best.push_back(&s);
  if (best.empty()) return false;
  std::stable_sort(best.begin(), best.end(), [](auto const* a, auto const* b) { return a->lookup_accuracy.mean > b->lookup_accuracy.mean; });
  std::string script = "set terminal svg size 1000," + std::to_string(std::max<std::size_t>(600, 100 + 18 * best.size())) +
                       " background rgb 'white'\nset output " + in_quotes(svg.string()) +
                       "\nset logscale x 2\nset yrange [0:1.05]\nset grid\nset key outside\nset offsets graph 0.05, graph 0.05, 0, 0\n";
  script += "set xlabel 'near bytes per token and layer: summary, sinks, window and generated tokens'\n";
  script += "set ylabel 'lookup accuracy, 95 % interval'\nset title " +
            in_quotes(r.task + ", " + std::to_string(r.documents) + " documents, budget " + number(100 * r.budget, 3) + " % of the prompt") +
            " noenhanced\nplot ";
  std::string points;
  for (std::size_t i = 0; i < best.size(); ++i) {  // colours repeat after eight, points do not
    script += std::string(i > 0 ? ", " : "") + "'-' using 1:2:3:4 with yerrorbars lw 1.5 pt " + std::to_string(i + 1) + " title " + in_quotes(best[i]->name) +
              " noenhanced";
    estimate const& e = best[i]->lookup_accuracy;
    points += number(std::max(1.0, best[i]->near_bytes()), 3) + " " + number(e.mean, 5) + " " + number(e.low, 5) + " " + number(e.high, 5) + "\ne\n";
  }
  return gnuplot(script + "\n" + points);
}

}  // namespace text2json
