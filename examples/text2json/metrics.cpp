#include "text2json/metrics.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <stdexcept>
#include <tuple>
#include <utility>

namespace text2json {

namespace {

/// The mean and interval of figure(document(i) for each i): of all documents, and of draws of as many.
template <class Figure>
estimate bootstrap(std::size_t n, std::uint64_t seed, int resamples, Figure const& figure) {
  double const mean = figure([](std::size_t i) { return i; });
  std::mt19937_64 engine(seed);
  std::vector<double> draws;
  std::vector<std::size_t> drawn(n);
  for (int r = 0; r < resamples; ++r) {
    for (auto& d : drawn) d = std::size_t(engine() % n);
    double const x = figure([&](std::size_t i) { return drawn[i]; });
    if (!std::isnan(x)) draws.push_back(x);
  }
  if (std::isnan(mean) || draws.empty()) return {mean, mean, mean};
  std::sort(draws.begin(), draws.end());
  auto const quantile = [&](double q) { return draws[std::size_t(std::lround(q * double(draws.size() - 1)))]; };
  return {mean, quantile(0.025), quantile(0.975)};
}

template <class Document>
double ratio(std::vector<double> const& numerators, std::vector<double> const& denominators, Document const& document) {
  double top = 0, bottom = 0;
  for (std::size_t i = 0; i < numerators.size(); ++i) {
    top += numerators[document(i)];
    bottom += denominators[document(i)];
  }
  return bottom > 0 ? top / bottom : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

estimate bootstrap_ratio(std::vector<double> const& numerators, std::vector<double> const& denominators, std::uint64_t seed, int resamples) {
  return bootstrap(numerators.size(), seed, resamples, [&](auto const& document) { return ratio(numerators, denominators, document); });
}

estimate bootstrap_difference(std::vector<double> const& numerators, std::vector<double> const& denominators, std::vector<double> const& other_numerators,
                              std::vector<double> const& other_denominators, std::uint64_t seed, int resamples) {
  return bootstrap(numerators.size(), seed, resamples,
                   [&](auto const& document) { return ratio(numerators, denominators, document) - ratio(other_numerators, other_denominators, document); });
}

scheme_difference difference(std::string name, std::vector<document_result> const& scheme, std::vector<document_result> const& other,
                             std::vector<document_result> const& dense, std::uint64_t seed) {
  if (scheme.empty() || scheme.size() != dense.size() || other.size() != dense.size())
    throw std::invalid_argument("difference: one result of each scheme is needed for each of dense");
  auto const of = [&](auto const& measure) {  // measure(result, dense's) is a sum and a count
    std::vector<double> sums[2], counts[2];
    for (std::size_t i = 0; i < dense.size(); ++i)
      for (int side = 0; side < 2; ++side) {
        std::pair<double, double> const one = measure(side == 0 ? scheme[i] : other[i], dense[i]);
        sums[side].push_back(one.first);
        counts[side].push_back(one.second);
      }
    return bootstrap_difference(sums[0], counts[0], sums[1], counts[1], seed);
  };
  auto const lookups = [&](bool counts_all) {
    return of([counts_all](document_result const& r, document_result const& d) {
      std::pair<double, double> p{};
      for (std::size_t f = 0; f < r.fields.size(); ++f)
        if (!r.fields[f].is_name && (counts_all || d.fields[f].is_right)) {
          p.first += r.fields[f].is_right;
          p.second += 1;
        }
      return p;
    });
  };
  scheme_difference to{std::move(name), {}, lookups(false), lookups(true), {}};
  to.kl = of([](document_result const& r, document_result const&) { return std::pair(r.tokens.kl, double(r.tokens.count)); });
  to.output_error = of([](document_result const& r, document_result const&) {
    return std::pair<double, double>(std::accumulate(r.output_error.begin(), r.output_error.end(), 0.0) / double(r.output_error.size()), 1);
  });
  return to;
}

double rank_correlation(std::vector<missed_share> const& pairs) {
  auto const ranks = [&](double missed_share::*side) {
    std::vector<std::size_t> order(pairs.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return pairs[a].*side < pairs[b].*side; });
    std::vector<double> rank(pairs.size());
    for (std::size_t first = 0, last; first < order.size(); first = last) {
      for (last = first + 1; last < order.size() && pairs[order[last]].*side == pairs[order[first]].*side;) ++last;
      for (std::size_t i = first; i < last; ++i) rank[order[i]] = double(first + last - 1) / 2;
    }
    return rank;
  };
  auto const said = ranks(&missed_share::said), real = ranks(&missed_share::real);
  double const mean = (double(pairs.size()) - 1) / 2;
  double both = 0, of_said = 0, of_real = 0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    both += (said[i] - mean) * (real[i] - mean);
    of_said += (said[i] - mean) * (said[i] - mean);
    of_real += (real[i] - mean) * (real[i] - mean);
  }
  return of_said > 0 && of_real > 0 ? both / std::sqrt(of_said * of_real) : std::numeric_limits<double>::quiet_NaN();
}

missed_sums::sums missed_sums::all() const {
  sums to;
  for (sums const& one : by_class) {
    to.count += one.count;
    to.said += one.said;
    to.real += one.real;
  }
  return to;
}

missed_sums missed_sums::of(std::vector<missed_share> const& pairs) {
  missed_sums to;
  for (missed_share const& m : pairs) {
    int c = 0;
    while (c + 1 < classes && m.said > most_said[c]) ++c;
    ++to.by_class[c].count;
    to.by_class[c].said += m.said;
    to.by_class[c].real += m.real;
  }
  to.rank_correlation = text2json::rank_correlation(pairs);
  return to;
}

scheme_summary summarize(std::string name, std::vector<document_result> const& scheme, std::vector<document_result> const& dense, std::uint64_t seed) {
  if (scheme.empty() || scheme.size() != dense.size()) throw std::invalid_argument("summarize: one result of the scheme is needed for each of dense");
  auto const n = scheme.size();
  // Each measure is a sum and a count by document.
  auto const over_documents = [&](auto const& measure) {
    std::vector<double> sums(n), counts(n);
    for (std::size_t i = 0; i < n; ++i) std::tie(sums[i], counts[i]) = measure(scheme[i], dense[i]);
    return bootstrap_ratio(sums, counts, seed);
  };
  auto const over_fields = [&](auto const& counts, auto const& is_right) {
    return over_documents([&](document_result const& s, document_result const& d) {
      std::pair<double, double> p{};
      for (std::size_t f = 0; f < s.fields.size(); ++f)
        if (counts(s.fields[f], d.fields[f])) {
          p.first += is_right(s.fields[f]);
          p.second += 1;
        }
      return p;
    });
  };
  auto const over_tokens = [&](auto const& sum) {
    return over_documents([&](document_result const& s, document_result const&) { return std::pair(double(sum(s.tokens)), double(s.tokens.count)); });
  };
  auto const each = [&](auto const& value) {
    return over_documents([&](document_result const& s, document_result const&) { return std::pair<double, double>(value(s), 1); });
  };
  auto const right = [](field_result const& f) { return double(f.is_right); };

  scheme_summary to;
  to.name = std::move(name);
  to.lookup_accuracy = over_fields([](auto const& f, auto const&) { return !f.is_name; }, right);
  to.retained = over_fields([](auto const& f, auto const& d) { return !f.is_name && d.is_right; }, right);
  to.field_accuracy = over_fields([](auto const&, auto const&) { return true; }, right);
  to.agreement = over_tokens([](token_sums const& t) { return t.agreements; });
  to.kl = over_tokens([](token_sums const& t) { return t.kl; });
  to.nll = over_tokens([](token_sums const& t) { return t.nll; });
  to.score = over_documents([](document_result const& s, document_result const&) { return std::pair(100 * s.score.value_or(0), s.score ? 1.0 : 0.0); });
  to.output_error = each([](document_result const& s) {
    double sum = 0;
    for (double const e : s.output_error) sum += e;
    return sum / double(s.output_error.size());
  });
  to.captured_mass = each([](document_result const& s) { return s.captured_mass; });
  to.captured_far_mass = each([](document_result const& s) { return s.captured_far_mass; });
  to.oracle_mass = each([](document_result const& s) { return s.oracle_mass; });

  auto const over_missed = [&](double missed_sums::sums::*side) {
    return over_documents([&](document_result const& s, document_result const&) {
      auto const all = s.missed.all();
      return std::pair(all.*side, double(all.count));
    });
  };
  to.missed_said = over_missed(&missed_sums::sums::said);
  to.missed_real = over_missed(&missed_sums::sums::real);
  to.missed_rank_correlation = over_documents([](document_result const& s, document_result const&) {
    double const r = s.missed.rank_correlation;
    return std::isnan(r) ? std::pair(0.0, 0.0) : std::pair(r, 1.0);
  });
  for (document_result const& d : scheme)
    for (int c = 0; c < missed_sums::classes; ++c) {
      to.missed.by_class[c].count += d.missed.by_class[c].count;
      to.missed.by_class[c].said += d.missed.by_class[c].said;
      to.missed.by_class[c].real += d.missed.by_class[c].real;
    }

  to.output_error_by_layer.assign(scheme[0].output_error.size(), 0.0);
  double tokens = 0, steps = 0, hits = 0, misses = 0;
  for (document_result const& d : scheme) {
    for (std::size_t l = 0; l < d.output_error.size(); ++l) to.output_error_by_layer[l] += d.output_error[l] / double(n);
    tokens += double(d.length);
    steps += double(d.steps);
    to.summary_bytes += d.bytes.summary;
    to.always_near_bytes += d.bytes.always_near;
    to.generated_bytes += d.bytes.generated;
    to.pool_bytes += d.bytes.pool;
    to.far_bytes += d.bytes.far;
    to.moved_bytes += double(d.work.moved_bytes);
    hits += double(d.work.pool_hits);
    misses += double(d.work.pool_misses);
    to.seconds += d.seconds;
    to.stage_seconds.score += d.work.seconds.score;
    to.stage_seconds.select += d.work.seconds.select;
    to.stage_seconds.fetch += d.work.seconds.fetch;
    to.stage_seconds.attend += d.work.seconds.attend;
  }
  for (double* const x : {&to.summary_bytes, &to.always_near_bytes, &to.generated_bytes, &to.pool_bytes, &to.far_bytes}) *x /= tokens;
  for (double* const x : {&to.moved_bytes, &to.seconds, &to.stage_seconds.score, &to.stage_seconds.select, &to.stage_seconds.fetch, &to.stage_seconds.attend})
    *x /= steps;
  to.hit_rate = hits + misses > 0 ? hits / (hits + misses) : std::numeric_limits<double>::quiet_NaN();
  return to;
}

}  // namespace text2json
