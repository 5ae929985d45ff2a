/* Answers every piece of data with its version, which the tests write into the
 * file: one compilation, as many different libraries as wanted. */
#include <stdlib.h>
#include <string.h>

#include "pilot_plugin.h"

static const PilotHost *host;
static const PilotContext *context;

/* Found by its beginning and overwritten in the file. */
static volatile char version[] = "@version:00000000";

static PilotSlice text(const char *s) {
  PilotSlice slice = {(const uint8_t *)s, strlen(s)};
  return slice;
}

static int32_t start(const PilotHost *table, const PilotContext *given, PilotSlice config,
                     void **instance, PilotBuffer *error) {
  (void)config;
  (void)error;
  host = table;
  context = given;
  *instance = (void *)version;
  return PILOT_OK;
}

static void stop(void *instance) { (void)instance; }

static int32_t self_test(void *instance, PilotBuffer *error) {
  (void)instance;
  if (version[9] != 'X') return PILOT_OK;
  static const char why[] = "this version is known to be bad";
  error->data = (const uint8_t *)why;
  error->len = sizeof why - 1;
  return PILOT_ERROR;
}

static int32_t stream_open(void *instance, uint64_t id, uint16_t port, PilotSlice peer,
                           void **user) {
  (void)instance;
  (void)id;
  (void)port;
  (void)peer;
  (void)user;
  return PILOT_OK;
}

static int32_t stream_ready(void *instance, uint64_t id, void *user, uint32_t what) {
  (void)instance;
  (void)user;
  if (what & PILOT_GONE) return PILOT_OK;
  for (;;) {
    PilotBuffer data;
    int32_t status = host->stream_read(context, id, &data);
    if (status == PILOT_WOULD_BLOCK) return PILOT_OK;
    if (status != PILOT_OK) {
      host->stream_close(context, id);
      return PILOT_OK;
    }
    if (data.release != NULL) data.release(data.owner);
    size_t written;
    PilotSlice number = {(const uint8_t *)version + 9, 8};
    host->stream_write(context, id, number, &written);
  }
}

const PilotPlugin *pilot_plugin_v1(void) {
  static PilotPlugin plugin;
  plugin.abi_major = PILOT_ABI_MAJOR;
  plugin.abi_minor = PILOT_ABI_MINOR;
  plugin.struct_size = sizeof plugin;
  plugin.manifest = text("{\"name\":\"version\",\"version\":\"1\","
                         "\"services\":[{\"name\":\"version\",\"ports\":[4000]}]}");
  plugin.start = start;
  plugin.stop = stop;
  plugin.self_test = self_test;
  plugin.stream_open = stream_open;
  plugin.stream_ready = stream_ready;
  return &plugin;
}
