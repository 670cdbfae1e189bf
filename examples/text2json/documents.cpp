#include "text2json/documents.hpp"

#include <algorithm>
#include <array>
#include <fstream>
#include <istream>
#include <map>
#include <nlohmann/json.hpp>
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
  std::vector<domain> domains = design_domains();
  if (from == subjects::all)
    for (domain const& d : reserved_domains()) domains.push_back(d);
  std::uint64_t const mixed = (seed * 1'000'003 + std::uint64_t(index)) * 8 + std::uint64_t(kind) * 2 + std::uint64_t(from);
  dice facts(mixed * 2), words(mixed * 2 + 1);
  fact_sheet const sheet = kind == task::text2json ? entities(domains[std::size_t(index) % domains.size()], std::min(24, 12 + tokens / 800), facts)
                                                   : archives(kind == task::needle ? 1 : 24, facts);
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

void write_jsonl(std::filesystem::path const& path, std::vector<document> const& documents) {
  std::ofstream out(path, std::ios::binary);
  for (document const& d : documents) out << nlohmann::json{{"problem", d.problem}, {"answer", d.answer}}.dump() << '\n';
  if (!out.flush()) throw std::runtime_error("The file " + path.string() + " cannot be written.");
}

}  // namespace text2json
