#include "text2json/documents.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <istream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>

namespace text2json {

namespace {

using texts = std::vector<std::string>;

/// Random choices that are the same on every machine; std::uniform_int_distribution differs between libraries.
class dice {
 public:
  explicit dice(std::uint64_t seed) : engine_(seed) {}
  int below(int n) { return int(engine_() % std::uint64_t(n)); }

  /// Deals from a list as from a deck: no word comes twice before all have come, so that the facts of one text are told apart by their first words.
  ///
  /// Requires  one draw a full expression: the order of several is the compiler's choice
  std::string const& of(texts const& list) {
    auto& deck = decks_[&list];
    if (deck.empty()) {
      for (int i = 0; i < int(list.size()); ++i) deck.push_back(i);
      for (std::size_t i = deck.size(); i > 1; --i) std::swap(deck[i - 1], deck[std::size_t(below(int(i)))]);
    }
    int const card = deck.back();
    deck.pop_back();
    return list[std::size_t(card)];
  }
  std::string const& of(texts&&) = delete;  // a deck belongs to a list that stays

 private:
  std::mt19937_64 engine_;
  std::map<texts const*, std::vector<int>> decks_;
};

std::string replaced(std::string text, std::string const& mark, std::string const& by) {
  for (auto at = text.find(mark); at != std::string::npos; at = text.find(mark, at + by.size())) text.replace(at, mark.size(), by);
  return text;
}

// Words.

texts const first_names{"Anna",   "Bruno", "Clara",  "David",  "Elena", "Felix", "Greta", "Hugo",  "Irene", "Jonas",
                        "Karin",  "Leon",  "Maria",  "Nils",   "Olga",  "Pavel", "Rosa",  "Simon", "Tanja", "Ursula",
                        "Victor", "Wanda", "Xavier", "Yasmin", "Zeno",  "Alma",  "Boris", "Cora",  "Dario", "Edith"};
texts const last_names{"Keller", "Moreau", "Lindgren", "Okafor", "Petrov",  "Tanaka", "Alvarez", "Schmidt", "Novak", "Rossi",
                       "Haddad", "Jensen", "Kowalski", "Murphy", "Fischer", "Marino", "Silva",   "Dubois",  "Berg",  "Castell",
                       "Weber",  "Sato",   "Horvath",  "Quinn",  "Larsson", "Mbeki",  "Peters",  "Romero",  "Stone", "Varga"};
texts const cities{"Lisbon",  "Oslo",    "Vienna", "Prague",  "Dublin",   "Turin",   "Geneva",  "Porto",   "Krakow",   "Malmo",
                   "Ghent",   "Seville", "Zagreb", "Tallinn", "Bergen",   "Nantes",  "Leipzig", "Utrecht", "Valencia", "Riga",
                   "Bologna", "Graz",    "Aarhus", "Antwerp", "Toulouse", "Cologne", "Vilnius", "Split",   "Tampere",  "Lyon"};
texts const starts{"Vel", "Zan", "Mor", "Kel", "Tri", "Bar", "Nov", "Sil", "Qua", "Fen", "Hal", "Dor", "Lum", "Cas", "Ori", "Pra",
                   "Ryn", "Tal", "Ber", "Gim", "Jas", "Wex", "Ulm", "Yor", "Ast", "Ced", "Ebb", "Ivo", "Nar", "Pol", "Sab", "Tor"};
texts const endings{"mora", "tex", "dyne", "via", "lon", "star", "wick", "nor", "field", "tron", "gard", "mont", "ridge", "sen", "vale", "port"};
texts const trades{"Systems", "Foods", "Textiles", "Logistics", "Optics", "Energy", "Robotics", "Paper", "Motors", "Glass", "Software", "Shipping"};
texts const specialties{"cardiology", "neurology",     "dermatology", "pediatrics",    "oncology",    "orthopedics", "radiology",  "urology",
                        "psychiatry", "ophthalmology", "surgery",     "endocrinology", "allergology", "geriatrics",  "hematology", "rheumatology"};
texts const hospitals{"General Hospital", "University Hospital", "Medical Center", "City Clinic", "Memorial Hospital"};
texts const goods{"Lamp", "Kettle", "Speaker", "Backpack", "Keyboard", "Heater", "Camera", "Drill", "Chair", "Mixer", "Clock", "Scale"};
texts const colors{"red", "blue", "green", "black", "white", "silver", "orange", "purple", "brown", "yellow", "grey", "pink"};
texts const film_adjectives{"Silent", "Last", "Golden", "Broken", "Distant", "Hidden", "Winter", "Burning", "Paper", "Crimson", "Empty", "Seventh"};
texts const nouns{"River",  "Garden", "Letter",   "Mirror", "Harbor", "Orchard", "Station", "Island",  "Bridge", "Lantern",  "Summer",  "Witness", "Violin",
                  "Castle", "Debt",   "Elevator", "Forest", "Guest",  "Hunter",  "Journey", "Kingdom", "Meadow", "Neighbor", "Prophet", "Shadow",  "Voyage"};
texts const vessels{"MS", "SS", "MV", "RV"};
texts const vessel_words{"Pearl", "Spirit", "Wave", "Pioneer", "Venture", "Crown", "Breeze", "Horizon"};
texts const collections{"Glass", "Clocks", "Maps", "Textiles", "Coins", "Music", "Toys", "Railways", "Ceramics", "Photography", "Ships", "Letters"};

texts const colors_of_things{"Amber", "Ashes",  "Brass", "Coral", "Dust", "Frost", "Ivory", "Jade",
                             "Linen", "Marble", "Rust",  "Salt",  "Silk", "Smoke", "Straw", "Velvet"};
texts const rivers{"Danube", "Elbe", "Loire", "Tagus", "Vistula", "Rhone", "Drava", "Ebro", "Meuse", "Oder", "Po", "Tiber", "Sava", "Weser", "Minho", "Neva"};
texts const dishes{"Soup", "Stew", "Pie", "Salad", "Cake", "Bread", "Curry", "Pancake", "Dumpling", "Gratin", "Pudding", "Noodle Bowl"};
texts const ingredients{"lentils", "pumpkin",  "almonds",   "spinach",  "barley", "mushrooms", "lemons",
                        "cabbage", "apricots", "chestnuts", "beetroot", "fennel", "walnuts",   "leeks"};
texts const sports{"rowing",  "fencing",   "archery",   "judo",     "cycling", "diving",   "hurdles",
                   "sailing", "wrestling", "badminton", "biathlon", "curling", "handball", "luge"};
texts const countries{"Norway",  "Chile", "Kenya",   "Japan",  "Canada",  "Portugal", "Vietnam",  "Estonia",
                      "Morocco", "Peru",  "Austria", "Jordan", "Ireland", "Ghana",    "Slovenia", "Uruguay"};
texts const constellations{"Lyra",   "Orion", "Cygnus", "Draco", "Aquila", "Perseus", "Auriga", "Taurus",
                           "Gemini", "Cetus", "Corvus", "Hydra", "Lepus",  "Vela",    "Pavo",   "Libra"};

/// What a domain is about, and how its facts are put into words: {n} name, {a} and {b} the two fields.
struct domain {
  std::string plural;
  std::array<std::string, 2> fields;
  std::function<std::string(dice&)> name, a, b;
  texts phrasings;  // each holds {n}, {a} and {b}
};

std::string person(dice& d) {
  std::string const& first = d.of(first_names);
  return first + " " + d.of(last_names);
}
std::string invented(dice& d) {
  std::string const& start = d.of(starts);
  return start + d.of(endings);
}
std::string year(dice& d, int from, int to) { return std::to_string(from + d.below(to - from)); }
auto one_of(texts const& list) {
  return [&list](dice& d) { return d.of(list); };
}

std::vector<domain> design_domains() {
  return {{"companies",
           {"city", "founder"},
           [](dice& d) {
             std::string const n = invented(d);
             return n + " " + d.of(trades);
           },
           one_of(cities),
           person,
           {"{n} has its headquarters in {a} and was founded by {b}.", "{n} is based in {a}. It was founded by {b}.",
            "The headquarters of {n} are in {a}, and the founder of the company is {b}.", "{n}, founded by {b}, has its main office in {a}.",
            "In {a} stands the head office of {n}, a company founded by {b}."}},
          {"doctors",
           {"specialty", "hospital"},
           [](dice& d) { return "Dr. " + person(d); },
           one_of(specialties),
           [](dice& d) {
             std::string const c = d.of(cities);
             return c + " " + d.of(hospitals);
           },
           {"{n} practises {a} at {b}.", "The specialty of {n} is {a}, and the doctor works at {b}.", "{n} works in {a} and sees patients at {b}.",
            "{n} belongs to the staff of {b}. The doctor's specialty is {a}.", "At {b} works {n}, whose specialty is {a}."}},
          {"products",
           {"price", "color"},
           [](dice& d) {
             std::string const n = invented(d), number = std::to_string(100 + d.below(900));
             return n + " " + d.of(goods) + " " + number;
           },
           [](dice& d) { return std::to_string(12 + d.below(980)) + " dollars"; },
           one_of(colors),
           {"The {n} costs {a} and comes in {b}.", "The {n} is sold in {b} for {a}.", "The price of the {n} is {a}, and its color is {b}.",
            "The {n} is {b}. Its price is {a}.", "Customers pay {a} for the {n}, which is {b}."}},
          {"films",
           {"director", "year"},
           [](dice& d) {
             std::string const adjective = d.of(film_adjectives);
             d.of(film_adjectives);  // one card more is drawn and put aside: the frozen documents were made so
             return "The " + adjective + " " + d.of(nouns);
           },
           person,
           [](dice& d) { return year(d, 1931, 2020); },
           {"The film {n} was directed by {a} and released in {b}.", "{n} is a film by the director {a}. It came out in {b}.",
            "The director of {n} is {a}; the film came out in {b}.", "{n} reached the cinemas in {b}. Its director was {a}.",
            "In {b}, {n} was released, a film by the director {a}."}}};
}

std::vector<domain> reserved_domains() {
  return {{"ships",
           {"port", "captain"},
           [](dice& d) {
             std::string const& kind = d.of(vessels);
             std::string const word = d.of(vessel_words);
             return kind + " " + invented(d) + " " + word;
           },
           one_of(cities),
           person,
           {"The home port of the {n} is {a}, and her captain is {b}.", "The {n} sails from {a} under captain {b}.",
            "The {n}, whose home port is {a}, is commanded by captain {b}.", "From {a} sails the {n}. Her captain is {b}."}},
          {"museums",
           {"city", "year"},
           [](dice& d) {
             std::string const n = invented(d);
             return n + " Museum of " + d.of(collections);
           },
           one_of(cities),
           [](dice& d) { return year(d, 1820, 2020); },
           {"The {n} stands in {a} and opened in {b}.", "In {a}, visitors find the {n}, which opened in {b}.", "The {n} opened in {b}. It is in {a}.",
            "The {n} is one of the sights of {a} and opened in {b}."}}};
}

std::vector<domain> further_domains() {
  return {{"books",
           {"author", "publisher"},
           [](dice& d) {
             std::string const& first = d.of(nouns);
             return "A " + first + " of " + d.of(colors_of_things);
           },
           person,
           [](dice& d) { return invented(d) + " Press"; },
           {"{n} was written by {a} and published by {b}.", "The author of {n} is {a}; the book came out with {b}.", "{b} publishes {n}, a book by {a}.",
            "Readers know {n} as the work of {a}. Its publisher is {b}."}},
          {"bridges",
           {"river", "length"},
           [](dice& d) { return invented(d) + " Bridge"; },
           one_of(rivers),
           [](dice& d) { return std::to_string(80 + d.below(2400)) + " metres"; },
           {"The {n} crosses the {a} and is {b} long.", "The {n} leads over the {a}. Its length is {b}.", "With a length of {b}, the {n} spans the {a}.",
            "Over the {a} stands the {n}, which is {b} long."}},
          {"recipes",
           {"ingredient", "time"},
           [](dice& d) { return invented(d) + " " + d.of(dishes); },
           one_of(ingredients),
           [](dice& d) { return std::to_string(10 + d.below(170)) + " minutes"; },
           {"The {n} is made with {a} and takes {b}.", "For the {n} one needs {a}, and {b}.", "Cooks use {a} for the {n}, which is ready after {b}.",
            "The {n} takes {b}. Its main ingredient is {a}."}},
          {"athletes",
           {"sport", "country"},
           person,
           one_of(sports),
           one_of(countries),
           {"{n} competes in {a} for {b}.", "The sport of {n} is {a}, and the country is {b}.", "For {b} starts {n}, whose sport is {a}.",
            "{n} represents {b} in {a}."}},
          {"trains",
           {"destination", "platform"},
           [](dice& d) {
             std::string const number = std::to_string(100 + d.below(900));
             return invented(d) + " Express " + number;
           },
           one_of(cities),
           [](dice& d) { return "platform " + std::to_string(1 + d.below(28)); },
           {"The {n} runs to {a} and leaves from {b}.", "Passengers for {a} take the {n} from {b}.", "From {b} departs the {n}. Its destination is {a}.",
            "The {n}, bound for {a}, waits at {b}."}},
          {"stars",
           {"constellation", "distance"},
           [](dice& d) {
             std::string const number = std::to_string(10 + d.below(990));
             return invented(d) + " " + number;
           },
           one_of(constellations),
           [](dice& d) { return std::to_string(12 + d.below(1900)) + " light years"; },
           {"The star {n} belongs to {a} and is {b} away.", "{n}, a star in {a}, lies at a distance of {b}.", "In {a} shines {n}, {b} from here.",
            "The distance of {n} is {b}. It is a star of {a}."}}};
}

/// Prose that states nothing that is asked for.
std::string filler(dice& d) {
  static texts const subjects{"the old bridge",          "a narrow path",        "the morning market", "an empty theatre",       "the village choir",
                              "a travelling clockmaker", "the river ferry",      "the town library",   "a row of poplars",       "the weather station",
                              "an amateur orchestra",    "the harbor wall",      "a family of storks", "the night train",        "the bakery on the corner",
                              "a retired schoolteacher", "the botanical garden", "the fire brigade",   "a small printing press", "the mountain railway"};
  static texts const verbs{"was repaired",         "attracted visitors",      "had to be closed",
                           "was talked about",     "gave nobody any trouble", "was described in a letter",
                           "drew a small crowd",   "remained as it had been", "was painted by a student",
                           "was almost forgotten", "changed little",          "became a meeting place"};
  static texts const times{"in the early spring",    "during a long rain",     "after the harvest",
                           "shortly before noon",    "on a windy evening",     "for the third time that season",
                           "at the end of the week", "while the others slept", "throughout the summer",
                           "before the first snow"};
  static texts const reasons{"because nobody had thought of a better plan",
                             "although the council had objected",
                             "and the neighbors were glad of it",
                             "which surprised even the oldest residents",
                             "so the matter was soon settled",
                             "but the newspapers hardly noticed",
                             "as had been the custom for generations",
                             "while the bells of the chapel were ringing",
                             "and that was the end of the discussion",
                             "though opinions differed about the cost"};
  std::string const subject = d.of(subjects), verb = d.of(verbs), time = d.of(times), reason = d.of(reasons);
  std::string text;
  switch (d.below(3)) {
    case 0:
      text = subject + " " + verb + " " + time + ", " + reason + ".";
      break;
    case 1:
      text = time + ", " + subject + " " + verb + ", " + reason + ".";
      break;
    default:
      text = time + " " + subject + " " + verb + ".";
      break;
  }
  text[0] = char(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

// Composition.

struct fact_sheet {
  std::string question;  // what is asked, before the text
  texts sentences;       // in the order of the text
  std::string answer;
};

std::string json_object(std::vector<std::pair<std::string, std::string>> const& fields) {
  std::string text;
  for (auto const& [key, value] : fields) text += (text.empty() ? "{" : ", ") + nlohmann::json(key).dump() + ": " + nlohmann::json(value).dump();
  return text + "}";
}

std::string unique_name(std::function<std::string(dice&)> const& draw, dice& d, std::set<std::string>& taken) {
  for (;;) {
    std::string name = draw(d);
    // No name begins with another: an answer must decide between them by its first tokens, not by where it stops.
    bool const clashes = std::any_of(taken.begin(), taken.end(), [&](std::string const& other) { return other.starts_with(name) || name.starts_with(other); });
    if (!clashes) {
      taken.insert(name);
      return name;
    }
  }
}

fact_sheet entities(domain const& of, int count, dice& d) {
  fact_sheet sheet;
  sheet.question = "Read the text and list every one of the " + of.plural +
                   " it describes, in the order of the text, as a JSON list of objects with the string keys \"name\", \"" + of.fields[0] + "\" and \"" +
                   of.fields[1] + "\". Answer with the JSON list only.";
  std::set<std::string> taken;
  for (int i = 0; i < count; ++i) {
    std::string const name = unique_name(of.name, d, taken), a = of.a(d), b = of.b(d);
    sheet.sentences.push_back(replaced(replaced(replaced(d.of(of.phrasings), "{n}", name), "{a}", a), "{b}", b));
    sheet.answer += (sheet.answer.empty() ? "[" : ", ") + json_object({{"name", name}, {of.fields[0], a}, {of.fields[1], b}});
  }
  sheet.answer += "]";
  return sheet;
}

fact_sheet archives(int count, dice& d) {
  fact_sheet sheet;
  std::set<std::string> taken;
  int const asked = d.below(count);
  for (int i = 0; i < count; ++i) {
    std::string const name = unique_name(invented, d, taken) + " archive", code = std::to_string(10000 + d.below(90000)), keeper = person(d);
    sheet.sentences.push_back(
        replaced(replaced(replaced("The access code of the {n} is {c} and its keeper is {k}.", "{n}", name), "{c}", code), "{k}", keeper));
    if (i == asked) {
      sheet.question = "Read the text and find the access code and the keeper of the " + name +
                       ". Answer with a JSON list of one object with the string keys \"name\", \"code\" and \"keeper\", and nothing else.";
      sheet.answer = "[" + json_object({{"name", name}, {"code", code}, {"keeper", keeper}}) + "]";
    }
  }
  return sheet;
}

/// Chains of registers, each copied from the one before; the last one's of one chain are traced back.
fact_sheet copies(dice& d) {
  constexpr int chains = 4, length = 6;
  std::vector<texts> names(chains);
  texts numbers;
  std::set<std::string> taken;
  for (auto& chain : names) {
    for (int i = 0; i < length; ++i) chain.push_back(unique_name(invented, d, taken));
    numbers.push_back(std::to_string(10000 + d.below(90000)));
  }
  fact_sheet sheet;
  std::vector<int> told(chains, 0);
  for (int left = chains * length; left > 0;) {  // in the order of each chain, which are mixed
    int const chain = d.below(chains), i = told[std::size_t(chain)];
    if (i == length) continue;
    auto const& of = names[std::size_t(chain)];
    sheet.sentences.push_back(i == 0 ? "The register " + of[0] + " was set to " + numbers[std::size_t(chain)] + "."
                                     : "The register " + of[std::size_t(i)] + " was copied from " + of[std::size_t(i - 1)] + ".");
    ++told[std::size_t(chain)];
    --left;
  }
  int const asked = d.below(chains);
  auto const& of = names[std::size_t(asked)];
  sheet.question = "Read the text and trace the register " + of.back() +
                   ": say which register it was copied from, which one that was copied from, and so on, until the register that was set to a number, which is "
                   "the last. Answer with a JSON list of objects with the string keys \"name\" and \"from\", and nothing else.";
  for (int i = length; i-- > 0;)
    sheet.answer += (sheet.answer.empty() ? "[" : ", ") +
                    json_object({{"name", of[std::size_t(i)]}, {"from", i > 0 ? of[std::size_t(i - 1)] : numbers[std::size_t(asked)]}});
  sheet.answer += "]";
  return sheet;
}

/// Some rows of a table, which stands in the text as Markdown.
fact_sheet table(table_rows const& from, int count, dice& d) {
  fact_sheet sheet;
  sheet.question = "The text holds a table. List its rows, in its order, as a JSON list of objects with the string keys ";
  std::string head, line;
  for (std::size_t c = 0; c < from.columns.size(); ++c) {
    sheet.question += (c == 0 ? "" : c + 1 == from.columns.size() ? " and " : ", ") + nlohmann::json(from.columns[c]).dump();
    head += "| " + from.columns[c] + " ";
    line += "|---";
  }
  sheet.question += ". Answer with the JSON list only.";
  std::string text = "\n\n" + head + "|\n" + line + "|\n";
  std::vector<std::size_t> order(from.rows.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[std::size_t(d.below(int(i)))]);
  std::vector<std::size_t> chosen;
  std::set<std::string> taken;
  for (std::size_t const r : order) {
    if (int(chosen.size()) == count) break;
    auto const& name = from.rows[r][0];
    bool const clashes = std::any_of(taken.begin(), taken.end(), [&](std::string const& other) { return other.starts_with(name) || name.starts_with(other); });
    if (clashes) continue;
    taken.insert(name);
    chosen.push_back(r);
  }
  for (std::size_t const r : chosen) {
    std::vector<std::pair<std::string, std::string>> fields;
    for (std::size_t c = 0; c < from.columns.size(); ++c) {
      text += "| " + from.rows[r][c] + " ";
      fields.emplace_back(from.columns[c], from.rows[r][c]);
    }
    text += "|\n";
    sheet.answer += (sheet.answer.empty() ? "[" : ", ") + json_object(fields);
  }
  sheet.sentences.push_back(text + "\n");
  sheet.answer += "]";
  return sheet;
}

/// Entities of a domain as rows.
table_rows rows_of(domain const& of, int count, dice& d) {
  table_rows to{{"name", of.fields[0], of.fields[1]}, {}};
  std::set<std::string> taken;
  for (int i = 0; i < count; ++i) {
    std::string const name = unique_name(of.name, d, taken), a = of.a(d), b = of.b(d);
    to.rows.push_back({name, a, b});
  }
  return to;
}

std::string compose(fact_sheet const& sheet, texts const& prose, std::vector<int> const& places) {
  std::string text = sheet.question + "\n\nText:\n";
  std::size_t fact = 0;
  for (std::size_t i = 0; i <= prose.size(); ++i) {
    for (; fact < places.size() && std::size_t(places[fact]) == i; ++fact) text += sheet.sentences[fact] + " ";
    if (i < prose.size()) text += prose[i] + " ";
  }
  text.back() = '\n';
  return text + "\nJSON:\n";
}

}  // namespace

document generator::operator()(int index) const {
  std::vector<domain> domains = from == subjects::further ? further_domains() : design_domains();
  if (from == subjects::all)
    for (domain const& d : reserved_domains()) domains.push_back(d);
  bool const is_frozen = int(kind) < 4 && from != subjects::further;  // whose numbers are as they were when tables were made of them
  std::uint64_t const mixed = (seed * 1'000'003 + std::uint64_t(index)) * 8 +
                              (is_frozen ? std::uint64_t(kind) * 2 + std::uint64_t(from) : (std::uint64_t(kind) * 8 + std::uint64_t(from) + 1) << 56);
  dice facts(mixed * 2), words(mixed * 2 + 1);
  domain const& of = domains[std::size_t(index) % domains.size()];
  int const count = std::min(24, 12 + tokens / 800);
  fact_sheet const sheet = [&] {
    switch (kind) {
      case task::text2json:
        return entities(of, count, facts);
      case task::variables:
        return copies(facts);
      case task::table:
        return table(records.rows.empty() ? rows_of(of, count, facts) : records, count, facts);
      default:
        return archives(kind == task::needle ? 1 : 24, facts);
    }
  }();
  texts prose;
  auto const with = [&](int sentences) {
    while (int(prose.size()) < sentences) prose.push_back(filler(words));
    dice spread(mixed);
    std::vector<int> places;
    for (std::size_t i = 0; i < sheet.sentences.size(); ++i) places.push_back(spread.below(sentences + 1));
    std::sort(places.begin(), places.end());
    return compose(sheet, texts(prose.begin(), prose.begin() + sentences), places);
  };
  int low = 0, high = 1;  // the smallest number of sentences that reaches the length
  while (count_tokens(with(high)) < tokens) high *= 2;
  while (high - low > 1) {
    int const middle = (low + high) / 2;
    (count_tokens(with(middle)) < tokens ? low : high) = middle;
  }
  return {with(high), sheet.answer};
}

std::vector<document> read_jsonl(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("The data set " + path.string() + " cannot be opened.");
  return read_jsonl(in, path.string());
}

std::vector<document> read_jsonl(std::istream& in, std::string const& name) {
  std::vector<document> documents;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto const require = [&](bool condition, std::string const& what) {
      if (!condition) {
        std::string message = "The data set ";
        message.append(name).append(", line ").append(std::to_string(number)).append(": ").append(what).append(".");
        throw std::runtime_error(message);
      }
    };
    auto const row = nlohmann::json::parse(line, nullptr, false);
    require(!row.is_discarded(), "this is not JSON");
    require(row.is_object(), "this is not a JSON object");
    for (char const* const key : {"problem", "answer"})
      require(row.contains(key) && row[key].is_string() && !row[key].get<std::string>().empty(), std::string("the text \"") + key + "\" is missing or empty");
    document d{row["problem"], row["answer"]};
    auto const gold = nlohmann::json::parse(d.answer, nullptr, false);
    require(gold.is_array() && !gold.empty(), "the answer is not a JSON list with objects in it");
    for (auto const& object : gold)
      require(object.is_object() && object.contains("name") && object["name"].is_string(), "an object of the answer has no \"name\"");
    documents.push_back(std::move(d));
  }
  if (documents.empty()) throw std::runtime_error("The data set " + name + " has no documents.");
  return documents;
}

table_rows read_records(std::filesystem::path const& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("The records " + path.string() + " cannot be opened.");
  table_rows to;
  std::vector<std::string> keys;
  std::string line;
  for (int number = 1; std::getline(in, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    auto const require = [&](bool condition, std::string const& what) {
      if (!condition) throw std::runtime_error("The records " + path.string() + ", line " + std::to_string(number) + ": " + what + ".");
    };
    auto const row = nlohmann::ordered_json::parse(line, nullptr, false);
    require(!row.is_discarded(), "this is not JSON");
    require(row.is_object() && !row.empty(), "this is not a JSON object with fields");
    if (keys.empty()) {
      for (auto const& field : row.items()) keys.push_back(field.key());
      require(keys.size() > 1, "a row needs a name and at least one more field");
      to.columns = keys;
      to.columns[0] = "name";
    }
    std::vector<std::string> texts_of_row;
    for (auto const& key : keys) {
      auto const at = row.find(key);
      require(at == row.end() || at->is_primitive(), "the field \"" + key + "\" is no text, number or truth value");
      std::string text = at == row.end() || at->is_null() ? "" : at->is_string() ? at->get<std::string>() : at->dump();
      std::replace_if(
          text.begin(), text.end(), [](char c) { return c == '|' || c == '\n' || c == '\r'; }, ' ');
      texts_of_row.push_back(std::move(text));
    }
    if (!texts_of_row[0].empty()) to.rows.push_back(std::move(texts_of_row));
  }
  if (to.rows.empty()) throw std::runtime_error("The records " + path.string() + " have no rows.");
  return to;
}

void write_jsonl(std::filesystem::path const& path, std::vector<document> const& documents) {
  std::ofstream out(path, std::ios::binary);
  for (document const& d : documents) out << nlohmann::json{{"problem", d.problem}, {"answer", d.answer}}.dump() << '\n';
  if (!out.flush()) throw std::runtime_error("The file " + path.string() + " cannot be written.");
}

}  // namespace text2json
