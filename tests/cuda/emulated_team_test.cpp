#include "cuda/team_laws.hpp"
#include "emulator/executor.hpp"

TEST_CASE("an emulated block obeys the laws of teams") {
  for (auto const& order : {emulator::forward, emulator::backward, emulator::shuffled(3)}) {
    emulator::device<> const on(order);
    team_laws::check<32>(on);
    team_laws::check<128>(on);
    team_laws::check<1024>(on);
  }
}
