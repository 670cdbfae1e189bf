#pragma once
#include <string>
#include <utility>
#include <vector>

#include "cellar/cuda/device.hpp"
#include "cellar/operation/snapshot.hpp"

/// Snapshots of a device's cache: the files of operation/snapshot.hpp, read and written by the host. A sequence saved on a device goes on on a host, and the
/// other way round, where the scheme is the same.
namespace cellar::inline CELLAR_ABI::cuda {

namespace detail {

/// Device memory by way of the host's, piece by piece.
template <device On>
class by_staging {
 public:
  explicit by_staging(On const& on) : on_(on) {}

  /// Valid until the next call.
  row_view<std::byte const> read(row_view<std::byte> x) {
    staging_.resize(std::size_t(x.count));
    on_.download(staging_.data(), x.data, x.count);
    return {staging_.data(), x.count};
  }
  template <class Fill>
  void write(row_view<std::byte> x, Fill const& fill) {
    staging_.resize(std::size_t(x.count));
    fill(row_view<std::byte>{staging_.data(), x.count});
    on_.upload(x.data, staging_.data(), x.count);
  }
  void wait() const { on_.wait(); }

 private:
  On on_;
  std::vector<std::byte> staging_;
};

template <offloading_scheme S, device On>
std::vector<operation::detail::snapshot_fact> snapshot_facts(On const& on, memory_map<S> const& map) {
  auto const there = map.shape.rotary.inverse_frequencies;
  std::vector<double> here(std::size_t(there.count), 0.0);
  on.download(here.data(), there.data, there.count * i64(sizeof(double)));
  return operation::detail::snapshot_facts(map, row_view<double const>{here.data(), there.count});
}

}  // namespace detail

/// As host::write_snapshot. Waits.
template <class File, offloading_scheme S, device On>
void write_snapshot(On const& on, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, row_view<page_id const> pages,
                    snapshot_record const& record, std::string const& path) {
  operation::detail::write_sequence<File>(map, detail::snapshot_facts(on, map), layers, slot, pages, record, path, detail::by_staging<On>(on));
}

template <class File, offloading_scheme S, device On>
operation::snapshot_reader<File, S, detail::by_staging<On>> open_snapshot(On const& on, memory_map<S> const& map, std::string const& path) {
  return {map, detail::snapshot_facts(on, map), path, detail::by_staging<On>(on)};
}

}  // namespace cellar::cuda
