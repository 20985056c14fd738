// SPDX-License-Identifier: MIT
// Equal prefixes found by content: a radix tree over token ids that knows which pages of a paged
// cache hold which tokens.
//
// An edge holds one page's tokens or more; two edges of a node differ in their first page. The tree
// holds its pages, so that they outlive the sequences that wrote them, until they are evicted, the
// least recently used leaf first. Only whole pages are shared: keys and values of a token depend on
// all tokens before it, and on those alone.
//
//   prefix_tree tree(cache);
//   const index known = tree.adopt(prompt, sequence);   // then prefill prompt from `known` on
//   tree.insert(prompt, sequence);                      // once its tokens are in the cache
//   while (!cache.try_append(sequence, k, v)) {
//     if (tree.evict(1) == 0) ...                       // nothing is left to evict
//   }
//
// Cost: a lookup compares each token once and searches the edges of a node by halving. The tree
// allocates for new edges alone; where memory runs out it is as before, and so is the cache. Not to
// be used by two threads at once. Zheng et al. 2024, arXiv 2312.07104.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "heed/cache/paged/paged.hpp"
#include "heed/core/target.hpp"

namespace heed::inline HEED_TARGET {

/// A page that is about to be evicted: its tokens, the first of them at place `first_token`.
template <class Token>
struct evicted_page {
  page_id page = 0;
  index first_token = 0;
  std::span<const Token> tokens;
};

template <class Cache, class Token = std::int32_t>
class prefix_tree {
 public:
  /// The cache must outlive the tree.
  explicit prefix_tree(Cache& cache) noexcept : cache_(&cache) {}
  prefix_tree(const prefix_tree&) = delete;
  prefix_tree& operator=(const prefix_tree&) = delete;
  ~prefix_tree() { clear(); }

  /// How many of the first tokens are known, in whole pages.
  [[nodiscard]] index match(std::span<const Token> tokens) const noexcept {
    return find(tokens).pages * page_size();
  }

  /// Lets the empty sequence `to` begin with the longest known prefix, and returns its tokens. Pass
  /// all but the last token where the last one's output is wanted. Throws shape_error.
  index adopt(std::span<const Token> tokens, index to) {
    const index most = cache_->max_tokens() / page_size() * page_size();
    const auto limit = (std::min)(tokens.size(), static_cast<std::size_t>(most));
    const place end = find(tokens.first(limit));
    cache_->require_empty(to);
    touch(end.at);
    const node* n = &root_;
    for (index done = 0; done < end.pages; done += n->size()) {
      n = child(n, tokens, done);
      const index count = (std::min)(end.pages - done, n->size());
      cache_->adopt(to, std::span(n->pages).first(at(count)));
    }
    return end.pages * page_size();
  }

  /// Remembers the whole pages of sequence `from`, whose first tokens are `tokens`. Returns how
  /// many pages were not known. Throws shape_error, std::bad_alloc.
  index insert(std::span<const Token> tokens, index from) {
    const auto table = cache_->page_table(from);
    if (static_cast<index>(tokens.size()) > cache_->length(from)) {
      fail<shape_error>("tokens has " + std::to_string(tokens.size()) + " entries, sequence " +
                        std::to_string(from) + " has " + std::to_string(cache_->length(from)));
    }
    const place end = find(tokens);
    const index whole = static_cast<index>(tokens.size()) / page_size();
    const index fresh = whole - end.pages;
    if (fresh > 0) {
      const auto ids = part(tokens, end.pages, fresh);
      const auto pages = table.subspan(at(end.pages), at(fresh));
      add(end, ids, pages);
      for (const page_id p : pages) cache_->hold(p);
      pages_ += fresh;
    } else {
      touch(end.at);
    }
    return fresh;
  }

  /// Frees up to `pages` pages that no one but the tree refers to, the last page of the least
  /// recently used leaf first. `keep(evicted_page)` is called before each and may save its rows;
  /// where it returns true the page stays. Returns how many were freed.
  template <class Keep>
  index evict(index pages, Keep&& keep) {
    index freed = 0;
    for (node* n = oldest_; n != nullptr && freed < pages;) {
      if (!n->children.empty() || cache_->references(n->pages.back()) > 1 ||
          keep(evicted_page<Token>{n->pages.back(), (depth(n) - 1) * page_size(),
                                   part(n->tokens, n->size() - 1, 1)})) {
        n = n->newer;
        continue;
      }
      ++freed;
      n = drop_last(n);
    }
    return freed;
  }
  index evict(index pages) {
    return evict(pages, [](const evicted_page<Token>&) { return false; });
  }

  /// Forgets everything; pages that sequences have stay theirs.
  void clear() noexcept {
    while (oldest_ != nullptr) (void)drop_last(oldest_);  // the oldest is always a leaf
  }

  /// Pages that the tree holds.
  [[nodiscard]] index pages() const noexcept { return pages_; }

  /// Throws corruption_error unless edges, their order of use and the holds of their pages agree.
  void validate() const {
    std::unordered_map<page_id, index> held;
    std::unordered_map<const node*, index> age;
    for (const node* n = newest_; n != nullptr; n = n->older) {
      age.emplace(n, static_cast<index>(age.size()));
      for (const page_id p : n->pages) ++held[p];
      require(n->pages.size() * at(page_size()) == n->tokens.size() && !n->pages.empty(),
              "an edge has other tokens than pages");
      require(n->older == nullptr ? n == oldest_ : n->older->newer == n, "an edge's age is lost");
    }
    index total = 0;
    index edges = 0;
    check_children(root_, age, edges);
    require(edges == static_cast<index>(age.size()), "an edge is on no path");
    for (const auto& [page, count] : held) {
      require(count <= cache_->holds(page), "a page is not held");
      total += count;
    }
    require(total == pages_, "pages are miscounted");
  }

 private:
  struct node {
    std::vector<Token> tokens;
    std::vector<page_id> pages;
    std::vector<std::unique_ptr<node>> children;  // ascending by their first page's tokens
    node* parent = nullptr;
    node* newer = nullptr;
    node* older = nullptr;
    [[nodiscard]] index size() const noexcept { return static_cast<index>(pages.size()); }
  };
  using children_type = std::vector<std::unique_ptr<node>>;
  /// The end of the longest known prefix of `pages` pages: after `within` pages of an edge.
  struct place {
    node* at;
    index within;
    index pages;
  };

  [[nodiscard]] static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }
  [[nodiscard]] index page_size() const noexcept { return cache_->page_size(); }
  /// The tokens of `count` pages from page `first` on.
  [[nodiscard]] std::span<const Token> part(std::span<const Token> tokens, index first,
                                            index count) const noexcept {
    return tokens.subspan(at(first * page_size()), at(count * page_size()));
  }

  /// Where among a node's children the one that begins with `page` is, or would be.
  [[nodiscard]] std::size_t slot(const children_type& children,
                                 std::span<const Token> page) const noexcept {
    const auto found = std::lower_bound(
        children.begin(), children.end(), page, [&](const auto& c, std::span<const Token> p) {
          return std::lexicographical_compare(c->tokens.begin(), c->tokens.begin() + page_size(),
                                              p.begin(), p.end());
        });
    return at(found - children.begin());
  }
  /// The child that begins with the tokens of page `i`, or null.
  [[nodiscard]] node* child(const node* n, std::span<const Token> tokens, index i) const noexcept {
    const auto page = part(tokens, i, 1);
    const std::size_t s = slot(n->children, page);
    if (s == n->children.size()) return nullptr;
    node* const c = n->children[s].get();
    return std::equal(page.begin(), page.end(), c->tokens.begin()) ? c : nullptr;
  }
  [[nodiscard]] place find(std::span<const Token> tokens) const noexcept {
    const index whole = static_cast<index>(tokens.size()) / page_size();
    place end{const_cast<node*>(&root_), 0, 0};
    while (end.pages < whole && end.within == end.at->size()) {
      node* const next = child(end.at, tokens, end.pages);
      if (next == nullptr) break;
      const auto rest = part(tokens, end.pages, (std::min)(whole - end.pages, next->size()));
      const auto differ = std::mismatch(rest.begin(), rest.end(), next->tokens.begin()).first;
      end = {next, (differ - rest.begin()) / page_size(), end.pages};
      end.pages += end.within;
    }
    return end;
  }
  /// Pages from the root to the end of an edge.
  [[nodiscard]] static index depth(const node* n) noexcept {
    index pages = 0;
    for (; n != nullptr; n = n->parent) pages += n->size();
    return pages;
  }

  template <class V>
  static void make_room(V& v, std::size_t more) {
    if (v.capacity() - v.size() < more) v.reserve((std::max)(v.size() + more, 2 * v.capacity()));
  }
  [[nodiscard]] static std::unique_ptr<node> make_edge(std::span<const Token> tokens,
                                                       std::span<const page_id> pages) {
    auto n = std::make_unique<node>();
    n->tokens.assign(tokens.begin(), tokens.end());
    n->pages.assign(pages.begin(), pages.end());
    return n;
  }
  void attach(node* parent, std::unique_ptr<node> n) noexcept {
    n->parent = parent;
    const std::size_t s = slot(parent->children, part(n->tokens, 0, 1));
    parent->children.insert(parent->children.begin() + static_cast<std::ptrdiff_t>(s),
                            std::move(n));
  }

  /// Tokens and pages after `end`. All memory comes first: what follows cannot fail.
  void add(const place& end, std::span<const Token> tokens, std::span<const page_id> pages) {
    node* const n = end.at;
    if (end.within == n->size() && n->children.empty() && n != &root_) {
      make_room(n->tokens, tokens.size());
      make_room(n->pages, pages.size());
      n->tokens.insert(n->tokens.end(), tokens.begin(), tokens.end());
      n->pages.insert(n->pages.end(), pages.begin(), pages.end());
      return touch(n);
    }
    std::unique_ptr<node> leaf = make_edge(tokens, pages);
    node* const added = leaf.get();
    if (end.within == n->size()) {
      make_room(n->children, 1);
      attach(n, std::move(leaf));
    } else {
      auto upper = make_edge(part(n->tokens, 0, end.within),
                             std::span<const page_id>(n->pages).first(at(end.within)));
      upper->children.reserve(2);
      split(n, std::move(upper), std::move(leaf));
    }
    push_newest(added);
    touch(added);
  }
  /// `upper` takes n's place and first pages; n and `leaf` become its children.
  void split(node* n, std::unique_ptr<node> upper, std::unique_ptr<node> leaf) noexcept {
    node* const parent = n->parent;
    node* const u = upper.get();
    std::unique_ptr<node>& link = parent->children[slot(parent->children, part(n->tokens, 0, 1))];
    upper->parent = parent;
    std::unique_ptr<node> lower = std::exchange(link, std::move(upper));
    n->tokens.erase(n->tokens.begin(),
                    n->tokens.begin() + static_cast<std::ptrdiff_t>(u->tokens.size()));
    n->pages.erase(n->pages.begin(), n->pages.begin() + u->size());
    attach(u, std::move(lower));
    attach(u, std::move(leaf));
    u->older = n;  // a parent is newer than its children
    u->newer = n->newer;
    (u->newer != nullptr ? u->newer->older : newest_) = u;
    n->newer = u;
  }

  void unlink(node* n) noexcept {
    (n->newer != nullptr ? n->newer->older : newest_) = n->older;
    (n->older != nullptr ? n->older->newer : oldest_) = n->newer;
    n->newer = n->older = nullptr;
  }
  void push_newest(node* n) noexcept {
    n->older = newest_;
    (newest_ != nullptr ? newest_->newer : oldest_) = n;
    newest_ = n;
  }
  /// The path to n is used now.
  void touch(node* n) noexcept {
    for (; n != &root_; n = n->parent) {
      unlink(n);
      push_newest(n);
    }
  }

  /// Drops a leaf's last page; the leaf after it in age, or itself where it has more.
  node* drop_last(node* n) noexcept {
    cache_->drop(n->pages.back());
    --pages_;
    n->pages.pop_back();
    n->tokens.resize(n->tokens.size() - at(page_size()));
    if (!n->pages.empty()) return n;
    node* const next = n->newer;
    unlink(n);
    children_type& siblings = n->parent->children;
    siblings.erase(std::find_if(siblings.begin(), siblings.end(),
                                [&](const auto& c) { return c.get() == n; }));
    return next;
  }

  static void require(bool holds, const char* message) {
    if (!holds) fail<corruption_error>(std::string("prefix_tree: ") + message);
  }
  template <class Ages>
  void check_children(const node& n, const Ages& age, index& edges) const {
    for (std::size_t i = 0; i < n.children.size(); ++i) {
      const node& c = *n.children[i];
      ++edges;
      require(c.parent == &n, "an edge has another parent");
      require(age.count(&c) == 1 && (&n == &root_ || age.at(&n) < age.at(&c)),
              "an edge is newer than its parent");
      require(
          i == 0 || std::lexicographical_compare(n.children[i - 1]->tokens.begin(),
                                                 n.children[i - 1]->tokens.begin() + page_size(),
                                                 c.tokens.begin(), c.tokens.begin() + page_size()),
          "edges are out of order");
      check_children(c, age, edges);
    }
  }

  Cache* cache_;
  node root_;  // no pages, and no age
  node* newest_ = nullptr;
  node* oldest_ = nullptr;
  index pages_ = 0;
};

}  // namespace heed::inline HEED_TARGET
