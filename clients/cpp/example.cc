// example HOST:PORT RECIPE.yaml [ARRAY i,j,k]: run a recipe; print a chunk's size and sum.

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>

#include "hyper.h"

int main(int count, char** arguments) {
  if (count != 3 && count != 5) {
    std::cerr << "usage: example HOST:PORT RECIPE.yaml [ARRAY i,j,k]\n";
    return 2;
  }
  std::ifstream file(arguments[2]);
  if (!file) {
    std::cerr << "error: " << arguments[2] << " cannot be read\n";
    return 2;
  }
  const std::string recipe{std::istreambuf_iterator<char>(file), {}};
  const char* token = std::getenv("HYPER_TOKEN");
  try {
    hyper::Client client(arguments[1], token ? token : "");
    const auto begun = client.submit(recipe);
    const auto last = client.watch(begun.name(), [](const hyper::Workflow& now) {
      std::cerr << now.tasks().succeeded() << "/" << now.tasks().total() << "\n";
    });
    std::cout << "{\"workflow\": \"" << last.name() << "\", \"state\": \""
              << hyperapi::scheduler::v1::RunState_Name(last.state())
              << "\", \"succeeded\": " << last.tasks().succeeded();
    if (count == 5) {
      auto array = client.array(arguments[3]);
      std::vector<std::int64_t> index;
      std::istringstream words(arguments[4]);
      for (std::string word; std::getline(words, word, ',');) index.push_back(std::stoll(word));
      const auto data = array.chunk(index);
      std::uint64_t sum = 0;
      for (const unsigned char value : data.value_or("")) sum += value;
      std::cout << ", \"bytes\": " << data.value_or("").size() << ", \"sum\": " << sum;
    }
    std::cout << "}\n";
    return last.state() == hyperapi::scheduler::v1::RUN_STATE_SUCCEEDED ? 0 : 1;
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
}
