#pragma once
#include <string>

#include "cellar/host/executor.hpp"
#include "cellar/operation/snapshot.hpp"

/// Whole sequences in files (operation/snapshot.hpp), of memory that the host reads and writes.
namespace cellar::inline CELLAR_ABI::host {

/// Writes a sequence aside and puts it in the place of `path`.
///
/// Effects  one thread; allocates a buffer of 256 KiB and a block's run
/// Errors   io_error, or those of the tier; `path` is then as it was
template <class File, offloading_scheme S>
void write_snapshot(executor const&, memory_map<S> const& map, row_view<layer_memory<S> const> layers, i64 slot, row_view<page_id const> pages,
                    snapshot_record const& record, std::string const& path) {
  auto const facts = operation::detail::snapshot_facts(map, map.shape.rotary.inverse_frequencies);
  operation::detail::write_sequence<File>(map, facts, layers, slot, pages, record, path, operation::detail::in_place{});
}

template <class File, offloading_scheme S>
operation::snapshot_reader<File, S> open_snapshot(executor const&, memory_map<S> const& map, std::string const& path) {
  return {map, operation::detail::snapshot_facts(map, map.shape.rotary.inverse_frequencies), path};
}

}  // namespace cellar::host
