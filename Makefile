# tether: `make help` lists what can be asked of this file.
#
# Sources are found by where they lie; a new file needs no line here:
#
#   lib/<layer>/*.c             build/libtether.a, .so   (lib/ctx alone: build/libtether-ctx.a, .so)
#   lib/<layer>/<layer>.h       build/include/tether/<layer>.h, the only way anything includes it
#   lib/<layer>/examples/X.c    build/examples/<layer>_X
#   server/*.c                  build/albumd             (on the public headers alone)
#   tests/<kind>/X.c            build/tests/<kind>/X     (with tests/support/*.c and Criterion)
#   tests/bench/X.c             build/bench/X            (with tests/support/*.c)
#   tests/fuzz/<layer>_X.c      build/fuzz/<layer>_X     (with the layer's own files, and tests/fuzz/shared/*.c)

VERSION  := 0.1.0
ABI      := 0

# --- What may be set: make BUILD=… CC=clang WERROR= SANITIZE=thread PREFIX=/usr V=1 T=unit/ctx_cancel
# ARGS='--pool-size 4' FUZZ_TIME=60

SANITIZE ?=
BUILD    ?= build$(if $(SANITIZE),/$(if $(findstring thread,$(SANITIZE)),tsan,asan))
PREFIX   ?= /usr/local
CFLAGS   ?= $(if $(SANITIZE),-O1,-O2) -g
WERROR   ?= -Werror
ARGS     ?=
T        ?=
V        ?=
FUZZ_TIME ?= 600
FUZZ_CC  ?= clang

say = $(if $(V),,@printf '  %-5s %s\n' '$(1)' '$(patsubst $(BUILD)/%,%,$(2))'; )

# Use every processor, unless told otherwise with -j.
ifeq ($(MAKELEVEL)$(filter -j%,$(MAKEFLAGS)),0)
MAKEFLAGS += -j$(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
endif

.PHONY: all run deps test check tests test-browser demo bench lint format asan tsan valgrind stress fuzz install uninstall \
        clean help FORCE
.DELETE_ON_ERROR:
.SUFFIXES:

# --- Sources

LAYERS       := ctx loop pg http
LIB_SRC      := $(wildcard lib/*/*.c)
EXAMPLE_SRC  := $(wildcard lib/*/examples/*.c)
SERVER_SRC   := $(wildcard server/*.c)
SERVER_PAGES := $(wildcard server/*.html) server/openapi.json
SUPPORT_SRC  := $(wildcard tests/support/*.c)
TEST_SRC     := $(wildcard tests/unit/*.c tests/integration/*.c tests/faults/*.c)
BENCH_SRC    := $(wildcard tests/bench/*.c)
FUZZ_SRC     := $(wildcard tests/fuzz/*.c)
FUZZ_SHARED  := $(wildcard tests/fuzz/shared/*.c)

object        = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
HEADERS      := $(LAYERS:%=$(BUILD)/include/tether/%.h)
SERVER_OBJ   := $(call object,$(SERVER_SRC)) $(addsuffix .o,$(addprefix $(BUILD)/obj/,$(subst .,_,$(SERVER_PAGES))))
SUPPORT_OBJ  := $(call object,$(SUPPORT_SRC))

LIBRARIES    := $(foreach lib,tether tether-ctx,$(BUILD)/lib$(lib).a $(BUILD)/lib$(lib).so)
PKGCONFIG    := $(BUILD)/tether.pc $(BUILD)/tether-ctx.pc
ALBUMD       := $(if $(SERVER_SRC),$(BUILD)/albumd)
EXAMPLES     := $(foreach src,$(EXAMPLE_SRC),$(BUILD)/examples/$(subst /examples/,_,$(src:lib/%.c=%)))
TESTS        := $(TEST_SRC:%.c=$(BUILD)/%)
BENCHES      := $(BENCH_SRC:tests/%.c=$(BUILD)/%)
FUZZERS      := $(FUZZ_SRC:tests/%.c=$(BUILD)/%)
# T=unit/ctx_cancel is one test program, T=unit a folder of them, T='unit/ctx_*' a pattern.
CHOSEN       := $(if $(T),$(patsubst %.c,$(BUILD)/%,$(filter %.c,$(wildcard $(T:%=tests/%.c) $(T:%=tests/%/*.c)))),$(TESTS))
CHOSEN_FUZZERS := $(if $(T),$(filter $(patsubst fuzz/%,%,$(T)),$(notdir $(FUZZERS))),$(notdir $(FUZZERS)))
CHOSEN_BENCHES := $(if $(T),$(filter $(T:%=$(BUILD)/bench/%),$(BENCHES)),$(BENCHES))

# --- Flags

LIB_PACKAGES  := libmicrohttpd libnghttp2 libpq libuv gnutls jansson
TEST_PACKAGES := criterion libcurl

# $(call once,NAME,--cflags or --libs,packages): asks pkg-config when first expanded, which only recipes do,
# so that `make help` and `make deps` work without any library.
once = $(eval $(1) := $(call ask,$(2),$(3)))$($(1))
ask  = $(foreach p,$(2),$(if $(shell pkg-config --exists $(p) && echo yes),,$(error \
       $(p) is missing (or pkg-config is): `make deps` installs what is needed)))$(shell pkg-config $(1) $(2))

LIB_CFLAGS  = $(call once,LIB_CFLAGS,--cflags,$(LIB_PACKAGES))
LIB_LIBS    = $(call once,LIB_LIBS,--libs,$(LIB_PACKAGES))
TEST_CFLAGS = $(call once,TEST_CFLAGS,--cflags,$(TEST_PACKAGES))
TEST_LIBS   = $(call once,TEST_LIBS,--libs,$(TEST_PACKAGES))

WARNINGS  := -Wall -Wextra -Wconversion -Wshadow -Wformat=2 -Wstrict-prototypes -Wmissing-prototypes -Wvla $(WERROR)
# Fortified memory functions would hide from the sanitizers what they are there to see.
HARDENING := -fstack-protector-strong -fstack-clash-protection -fPIC \
             $(if $(SANITIZE),,$(if $(filter -O1 -O2 -O3 -Os,$(CFLAGS)),-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2))
SANITIZER := $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-sanitize-recover=all -fno-omit-frame-pointer)

COMPILE = $(CC) -std=gnu11 -pthread -D_GNU_SOURCE -DTETHER_VERSION='"$(VERSION)"' $(CPPFLAGS) \
          -I$(BUILD)/include $(LIB_CFLAGS) $(CFLAGS) $(WARNINGS) $(HARDENING) $(SANITIZER)
LINK    = $(CC) -pthread $(CFLAGS) $(SANITIZER) -Wl,-z,relro,-z,now,-z,noexecstack $(LDFLAGS)

# --- Everything

all: $(LIBRARIES) $(PKGCONFIG) $(ALBUMD) $(EXAMPLES) ## build the libraries, albumd and the examples (the default)

# --- Compiling. A change of flags rebuilds everything; a change in which files there are, what is linked from them.

remember = @mkdir -p $(@D) && printf '%s\n' $(1) | cmp -s - $@ || printf '%s\n' $(1) >$@
quoted   = '$(subst ','\'',$(1))'

$(BUILD)/flags: FORCE
	$(call remember,$(call quoted,$(COMPILE)) $(call quoted,$(LINK)))

$(BUILD)/sources: FORCE
	$(call remember,$(LIB_SRC) $(SERVER_SRC) $(SERVER_PAGES))

$(BUILD)/obj/%.o: %.c $(BUILD)/flags | $(HEADERS)
	$(call say,cc,$<)mkdir -p $(@D) && $(COMPILE) $(MORE_CFLAGS) -MMD -MP -c $< -o $@

# Criterion's cr_assert(eq(…)) assigns an int to a one-bit field, which -Wconversion reports in each test.
$(BUILD)/obj/tests/%.o: MORE_CFLAGS = -Wno-conversion -Itests/support $(TEST_CFLAGS)

# Fibers jump from stack to stack, which a shadow stack (Ubuntu's gcc asks for one) takes for an attack. One object
# without its mark takes it off the whole program.
$(BUILD)/obj/lib/loop/fiber.o: MORE_CFLAGS = $(if $(filter x86_64% i%86%,$(shell $(CC) -dumpmachine)),-fcf-protection=none)

# A layer becomes one object in which only its public names can be seen: what its files share clashes with nobody's
# names, neither another layer's nor those of a program that links libtether.a.
PUBLIC := ctx_* CTX_* loop_* wait_* pg_* PG_* http_* HTTP_*

define layer_object
$(BUILD)/obj/lib/$(1).o: $(call object,$(wildcard lib/$(1)/*.c)) $(BUILD)/sources
	$$(call say,layer,$(1))$(LD) -r $(call object,$(wildcard lib/$(1)/*.c)) -o $$@ && \
	  objcopy --localize-hidden --wildcard $(PUBLIC:%=--keep-global-symbol='%') $$@
endef
$(foreach layer,$(LAYERS),$(eval $(call layer_object,$(layer))))

# server/live.html becomes `const unsigned char live_html[]` and `const size_t live_html_size`, openapi.json likewise.
embed = $(call say,embed,$<)mkdir -p $(@D) && { echo '\#include <stddef.h>'; \
	  echo 'extern const unsigned char $(*F)_$(1)[]; extern const size_t $(*F)_$(1)_size;'; \
	  echo 'const unsigned char $(*F)_$(1)[] = {'; od -An -v -tx1 $< | sed 's/[0-9a-f][0-9a-f]/0x&,/g'; echo '0};'; \
	  echo 'const size_t $(*F)_$(1)_size = sizeof $(*F)_$(1) - 1;'; } >$(@:.o=.c) && $(COMPILE) -c $(@:.o=.c) -o $@

$(BUILD)/obj/%_html.o: %.html $(BUILD)/flags
	$(call embed,html)

$(BUILD)/obj/%_json.o: %.json $(BUILD)/flags
	$(call embed,json)

define public_header
$(BUILD)/include/tether/$(1).h: lib/$(1)/$(1).h
	@mkdir -p $$(@D) && ln -sf $$(abspath $$<) $$@
endef
$(foreach layer,$(LAYERS),$(eval $(call public_header,$(layer))))

# --- Libraries

define library
$(BUILD)/lib$(1).a: $(2)
	$$(call say,ar,$$@)rm -f $$@ && $(AR) rcs $$@ $(2)

$(BUILD)/lib$(1).so: $(2)
	$$(call say,link,$$@)$$(LINK) -shared $(if $(SANITIZE),,-Wl,-z,defs) -Wl,-soname,lib$(1).so.$(ABI) $(2) $(3) -o $$@.$(VERSION) && \
	  ln -sf lib$(1).so.$(VERSION) $$@.$(ABI) && ln -sf lib$(1).so.$(ABI) $$@
endef
$(eval $(call library,tether,$(LAYERS:%=$(BUILD)/obj/lib/%.o),$$(LIB_LIBS)))
$(eval $(call library,tether-ctx,$(BUILD)/obj/lib/ctx.o))

# --- Programs

$(BUILD)/albumd: $(SERVER_OBJ) $(BUILD)/libtether.a $(BUILD)/sources
	$(call say,link,$@)$(LINK) $(SERVER_OBJ) $(BUILD)/libtether.a $(LIB_LIBS) -o $@

define example
$(BUILD)/examples/$(subst /examples/,_,$(1:lib/%.c=%)): $(call object,$(1)) $(BUILD)/libtether.a
	$$(call say,link,$$@)mkdir -p $$(@D) && $$(LINK) $$^ $$(LIB_LIBS) -o $$@
endef
$(foreach src,$(EXAMPLE_SRC),$(eval $(call example,$(src))))

# What tests/support/alloc_fault.c stands in front of, to let it fail.
FALLIBLE := malloc calloc realloc strdup strndup pthread_create eventfd

$(TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(SUPPORT_OBJ) $(BUILD)/libtether.a
	$(call say,link,$@)mkdir -p $(@D) && $(LINK) $(FALLIBLE:%=-Wl,--wrap=%) $^ $(LIB_LIBS) $(TEST_LIBS) -lm -o $@

$(BENCHES): $(BUILD)/bench/%: $(BUILD)/obj/tests/bench/%.o $(SUPPORT_OBJ) $(BUILD)/libtether.a
	$(call say,link,$@)mkdir -p $(@D) && $(LINK) $^ $(LIB_LIBS) $(filter-out -lcriterion,$(TEST_LIBS)) -o $@

# A fuzz target looks inside its layer: it is linked with the layer's files as they are before they become one object.
# With SANITIZE=fuzzer-no-link,… it is libFuzzer's, else it has a main of its own, which only tries a corpus.
FUZZ_INCLUDES := -iquote lib/http -iquote server -iquote tests/fuzz/shared -iquote tests/support
$(BUILD)/obj/tests/fuzz/%.o: MORE_CFLAGS = $(FUZZ_INCLUDES)
FUZZ_WITH_http   := $(call object,$(wildcard lib/http/*.c)) $(BUILD)/obj/lib/loop.o $(BUILD)/obj/lib/ctx.o
FUZZ_WITH_server := $(filter-out %/main.o,$(SERVER_OBJ)) $(BUILD)/libtether.a
FUZZ_ENGINE      := $(if $(findstring fuzzer,$(SANITIZE)),-fsanitize=fuzzer)
FUZZ_SHARED_OBJ  := $(filter-out $(if $(FUZZ_ENGINE),%/standalone.o),$(call object,$(FUZZ_SHARED))) \
                    $(call object,tests/support/certificates.c)

define fuzzer
$(BUILD)/fuzz/$(1): $(BUILD)/obj/tests/fuzz/$(1).o $(FUZZ_SHARED_OBJ) $(FUZZ_WITH_$(firstword $(subst _, ,$(1)))) $(BUILD)/sources
	$$(call say,link,$$@)mkdir -p $$(@D) && $$(LINK) $$(FUZZ_ENGINE) $$(filter-out %/sources,$$^) $$(LIB_LIBS) -lm -o $$@
endef
$(foreach name,$(notdir $(FUZZERS)),$(eval $(call fuzzer,$(name))))

$(BUILD)/tests/unit/fuzz: | $(FUZZERS)

-include $(patsubst %.o,%.d,$(call object,$(LIB_SRC) $(EXAMPLE_SRC) $(SERVER_SRC) $(SUPPORT_SRC) $(TEST_SRC) $(BENCH_SRC) \
  $(FUZZ_SRC) $(FUZZ_SHARED)))

# --- Running and testing. `run` and `test` first install what is missing.

run: ## build, start a private PostgreSQL and albumd, say what to try
	@.make/install-packages build run
	@$(MAKE) --no-print-directory $(BUILD)/albumd
	@exec .make/run $(BUILD) $(ARGS)

deps: ## install the packages that building, running and testing need
	@.make/install-packages build run test

test: ## build and run the tests; T=unit/ctx_cancel for one program, T=unit for a folder
	@.make/install-packages build run test
	@$(MAKE) --no-print-directory check

check: tests ## the same without looking for missing packages
	@SANITIZE='$(SANITIZE)' tests/run $(BUILD) $(CHOSEN)

tests: all $(CHOSEN) ## build the tests

test-browser: ## the live page in headless Chromium
	@.make/install-packages build run browser
	@$(MAKE) --no-print-directory $(BUILD)/albumd
	@tests/browser/run $(BUILD)

demo: ## make the pictures of README.md anew, from a real run
	@.make/install-packages build run browser demo
	@$(MAKE) --no-print-directory $(BUILD)/albumd
	@.make/demo $(BUILD)
	@tests/browser/run $(BUILD) picture.mjs

asan: ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@.make/install-packages build run test
	@$(MAKE) --no-print-directory check BUILD=$(BUILD)/asan SANITIZE=address,undefined

tsan: ## the tests under ThreadSanitizer
	@.make/install-packages build run test
	@$(MAKE) --no-print-directory check BUILD=$(BUILD)/tsan SANITIZE=thread

valgrind: ## the tests under valgrind
	@.make/install-packages build run test valgrind
	@$(MAKE) --no-print-directory check TEST_UNDER=valgrind

stress: ## 100 000 cancels at random moments, three ways to the server; about half an hour
	@TETHER_CANCELS=100000 TEST_LIMIT=7200 $(MAKE) --no-print-directory test T=faults/pg_random_cancels

fuzz: ## look for inputs that break something, FUZZ_TIME seconds (600) each; T=http_router for one
	@.make/install-packages build run test fuzz
	@$(MAKE) --no-print-directory fuzz-run BUILD=$(BUILD)/libfuzzer CC='$(FUZZ_CC)' \
	  SANITIZE=fuzzer-no-link,address,undefined

.PHONY: fuzz-run
fuzz-run: $(CHOSEN_FUZZERS:%=$(BUILD)/fuzz/%)
	@tests/fuzz/run '$(BUILD)' '$(FUZZ_TIME)' $(CHOSEN_FUZZERS)

bench: all $(CHOSEN_BENCHES) ## run the benchmarks; T=ctx_bench for one
	@TETHER_SOURCE='$(CURDIR)' TETHER_BUILD='$(abspath $(BUILD))' \
	  sql/local-db run --throwaway -o max_connections=700 $(BUILD)/bench/db \
	  sh -c 'for bench; do "$$bench" || exit 1; done' sh $(CHOSEN_BENCHES)

# --- Form

C_FILES  := $(wildcard lib/*/*.[ch] lib/*/examples/*.c server/*.[ch] tests/*/*.[ch] tests/*/*/*.[ch])
SH_FILES := .ci/run .make/check-layers .make/demo .make/install-packages .make/run sql/local-db tests/run tests/browser/run \
            tests/fuzz/run

# The form is clang-format 14's; each version has its own ideas about the corners of C.
check_format = if clang-format --version | grep -q 'version 14\.'; then clang-format $(1) $(C_FILES); \
  else echo "the form of the C files is not looked at: that takes clang-format 14, here is $$(clang-format --version)"; fi

lint: $(HEADERS) ## check the form, the order of the layers, clang-tidy and shellcheck
	@.make/install-packages build test lint
	@$(call check_format,--dry-run -Werror)
	@shellcheck $(wildcard $(SH_FILES))
	@.make/check-layers
	@if grep -rnE --include='*.[ch]' '\bgt\(' tests; then echo "Criterion 2.4.1 takes gt for ge: say ge"; exit 1; fi
	@printf '%s\n' $(filter %.c,$(C_FILES)) | xargs -P $$(getconf _NPROCESSORS_ONLN) -I{} \
	  clang-tidy --quiet {} -- -std=gnu11 -D_GNU_SOURCE -DTETHER_VERSION='"$(VERSION)"' \
	  -I$(BUILD)/include -Itests/support $(FUZZ_INCLUDES) $(LIB_CFLAGS) $(TEST_CFLAGS) \
	  2>$(BUILD)/lint.log || { grep -v 'warnings\? generated' $(BUILD)/lint.log; exit 1; }

format: ## bring the C files into form
	@$(call check_format,-i)

# --- Installing

UNITS := albumd.service albumd.socket

pkgconfig_file = $(call remember,'prefix=$(PREFIX)' 'libdir=$${prefix}/lib' 'includedir=$${prefix}/include' '' \
  'Name: $(1)' 'Description: $(2)' 'Version: $(VERSION)' 'Libs: -L$${libdir} -l$(1)' 'Libs.private: $(3) -pthread' \
  'Cflags: -I$${includedir}')

$(BUILD)/tether.pc: FORCE
	$(call pkgconfig_file,tether,Cancellable HTTP requests over cancellable PostgreSQL queries,$(LIB_LIBS))

$(BUILD)/tether-ctx.pc: FORCE
	$(call pkgconfig_file,tether-ctx,Contexts: cancellation and deadlines and values for C)

install: all ## install under PREFIX (/usr/local), below DESTDIR if set
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include/tether
	install -m 755 $(ALBUMD) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(HEADERS) $(DESTDIR)$(PREFIX)/include/tether
	install -m 644 $(filter %.a,$(LIBRARIES)) $(DESTDIR)$(PREFIX)/lib
	for lib in libtether libtether-ctx; do \
	  install -m 755 $(BUILD)/$$lib.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib && \
	  ln -sf $$lib.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib/$$lib.so.$(ABI) && \
	  ln -sf $$lib.so.$(ABI) $(DESTDIR)$(PREFIX)/lib/$$lib.so || exit 1; \
	done
	install -m 644 $(PKGCONFIG) $(DESTDIR)$(PREFIX)/lib/pkgconfig
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in $(UNITS); do \
	  sed 's,/usr/local/bin/,$(PREFIX)/bin/,' server/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit 1; \
	done

uninstall: ## remove what install put there
	rm -f $(DESTDIR)$(PREFIX)/bin/albumd $(DESTDIR)$(PREFIX)/lib/libtether.* $(DESTDIR)$(PREFIX)/lib/libtether-ctx.* \
	  $(DESTDIR)$(PREFIX)/lib/pkgconfig/tether.pc $(DESTDIR)$(PREFIX)/lib/pkgconfig/tether-ctx.pc \
	  $(UNITS:%=$(DESTDIR)$(PREFIX)/lib/systemd/system/%)
	rm -rf $(DESTDIR)$(PREFIX)/include/tether

clean: ## remove what was built, the private database included
	@[ ! -d $(BUILD)/db ] || sql/local-db remove $(BUILD)/db
	rm -rf $(BUILD)

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
