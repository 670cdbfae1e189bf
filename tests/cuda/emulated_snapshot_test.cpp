#include "cuda/snapshots.hpp"
#include "emulator/executor.hpp"

namespace {

/// Far memory that counts as the device's own: a snapshot reaches it through the device.
struct own_memory : cellar::tier::host_memory {
  using host_memory::host_memory;
  static constexpr bool is_device_reachable = true;
};
template <class Scheme>
struct in_own_memory : Scheme {
  using tier = own_memory;
};
struct token_major : snapshots::sealing_bounds {
  using layout = cellar::layout::token_major;
};

}  // namespace

TEST_CASE("a sequence that the host saved goes on on a device, and is saved there byte for byte, and the other way round") {
  snapshots::check_all(emulator::device<>());
  snapshots::check<in_own_memory<snapshots::sealing>>(emulator::device<>());
  snapshots::check<in_own_memory<token_major>>(emulator::device<>());
}
