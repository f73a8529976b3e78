/* The meter between an engine over a device without arithmetic and a journal in a temporary folder: what comes out is
 * in the journal, what is not on disk does not come out, and what the journal holds at the end is what was computed. */
#include "tests/unit/unit.h"

#include "runtime/base/mem.h"
#include "server/billing/journal_reader.h"
#include "server/billing/meter_parts.h"
#include "tests/support/null_device.h"
#include "tests/support/plain_tokenizer.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

enum { VOCAB = 64, END_ID = 63, CONTEXT = 1024, JOBS = 24, JOBS_MAX = 32, CHOICES = 3, WAIT_S = 60 };

/* ---- a disk whose syncs can be held up, or fail, and its reads ---- */

struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
    bool closed, broken;
    uint32_t waiting, passes; /* passes: so many go through while it is closed */
};
static struct gate gate = {.mutex = PTHREAD_MUTEX_INITIALIZER, .condition = PTHREAD_COND_INITIALIZER};
static _Atomic bool unreadable;

static int gated_sync(void *state, int fd)
{
    (void)state;
    pthread_mutex_lock(&gate.mutex);
    gate.waiting++;
    while (gate.closed && gate.passes == 0) pthread_cond_wait(&gate.condition, &gate.mutex);
    if (gate.closed) gate.passes--;
    gate.waiting--;
    bool broken = gate.broken;
    pthread_mutex_unlock(&gate.mutex);
    return broken ? -EIO : disk_system()->sync(disk_system()->state, fd);
}

static void gate_set(bool closed, bool broken)
{
    pthread_mutex_lock(&gate.mutex);
    gate.closed = closed;
    gate.broken = broken;
    pthread_cond_broadcast(&gate.condition);
    pthread_mutex_unlock(&gate.mutex);
}

static void gate_pass_one(void)
{
    pthread_mutex_lock(&gate.mutex);
    gate.passes = 1;
    pthread_cond_broadcast(&gate.condition);
    pthread_mutex_unlock(&gate.mutex);
}

static bool gate_waits(void)
{
    pthread_mutex_lock(&gate.mutex);
    bool waits = gate.waiting > 0 && gate.passes == 0;
    pthread_mutex_unlock(&gate.mutex);
    return waits;
}

static int64_t gated_read(void *state, int fd, void *out, size_t length, uint64_t offset)
{
    (void)state;
    return atomic_load(&unreadable) ? -EIO : disk_system()->read_at(disk_system()->state, fd, out, length, offset);
}

/* ---- a rig: engine, meter, one port ---- */

struct job {
    struct request request;
    struct choice choices[CHOICES];
    uint32_t tokens[CHOICES][CONTEXT];
    uint32_t prompt[128];
    struct metered metered;
    struct metered_choice counts[CHOICES];
    uint32_t told[CHOICES], scheduled, ends;
    struct event end;
};

struct rig {
    char folder[64];
    uint64_t segment_bytes;
    uint32_t out_limit; /* of the jobs submitted from now on */
    struct disk disk;
    struct device *device;
    struct tokenizer *tokenizer;
    struct engine *engine;
    struct meter *meter;
    struct meter_port *port;
    struct billing_stats stats;
    struct journal_report report;
    struct job *jobs;
};

static struct tokenizer *tokenizer_make(void)
{
    struct tokenizer *tokenizer = NULL;
    struct error err = {""};
    if (plain_tokenizer_create(VOCAB, &tokenizer, &err) != ST_OK) fail_msg("tokenizer: %s", err.message);
    return tokenizer;
}

static void wake_meter(void *state)
{
    struct rig *rig = state;
    meter_wake(rig->meter);
}

static void rig_meter(struct rig *rig, bool enforce, enum commit_mode mode)
{
    struct meter_config config = {.journal = {.disk = &rig->disk,
                                              .clock = clock_system(),
                                              .folder = rig->folder,
                                              .uuid = "6f1c1f9e-3d5b-4c39-9d5e-1a2b3c4d5e6f",
                                              .mode = mode,
                                              .group_ms = 20,
                                              .segment_bytes = rig->segment_bytes,
                                              .free_permille_min = 0},
                                  .clock = clock_system(),
                                  .enforce = enforce,
                                  .leases = {.valid_ns = 120 * NS_PER_S,
                                             .rate_window_ns = 30 * NS_PER_S,
                                             .idle_ns = 60 * NS_PER_S,
                                             .retry_ns = 10 * NS_PER_S,
                                             .answer_ns = 5 * NS_PER_S,
                                             .dry_ns = 50 * NS_PER_MS},
                                  .stats = &rig->stats,
                                  .keep_ms = 1000};
    struct error err = {{0}};
    if (meter_create(&config, &rig->meter, &rig->report, &err) != ST_OK) fail_msg("%s", err.message);
}

static void rig_start_with(struct rig *rig, bool enforce, enum commit_mode mode, uint64_t segment_bytes)
{
    memset(rig, 0, sizeof *rig);
    strcpy(rig->folder, "/tmp/test_meter_XXXXXX");
    assert_non_null(mkdtemp(rig->folder));
    rig->disk = *disk_system();
    rig->disk.sync = gated_sync;
    rig->disk.read_at = gated_read;
    rig->segment_bytes = segment_bytes;
    rig_meter(rig, enforce, mode);
    rig->tokenizer = tokenizer_make();
    static const struct null_device_config device = {
        .vocab = VOCAB, .kv_blocks = 512, .tokens_max = 256, .seqs_max = 32, .rows_max = 64, .verify = true};
    assert_int_equal(null_device_create(&device, &rig->device), ST_OK);
    struct engine_config config = {.context_max = CONTEXT,
                                   .running_max = 32,
                                   .step_tokens_max = 256,
                                   .queue_requests_max = 64,
                                   .queue_tokens_max = 100000,
                                   .tenants_max = 4,
                                   .tenant_share_percent = 100,
                                   .prefix_cache = true,
                                   .think_start_id = VOCAB_NO_ID,
                                   .think_end_id = VOCAB_NO_ID,
                                   .clock = clock_system(),
                                   .wake = wake_meter,
                                   .wake_state = rig};
    struct error err = {{0}};
    if (engine_create(&config, rig->device, rig->tokenizer, &rig->engine, &err) != ST_OK) fail_msg("%s", err.message);
    assert_int_equal(meter_port_open(rig->meter, rig->engine, &rig->port), ST_OK);
    rig->jobs = mem_alloc(JOBS_MAX, sizeof *rig->jobs);
}

static void rig_start(struct rig *rig, bool enforce, enum commit_mode mode)
{
    rig_start_with(rig, enforce, mode, 1 << 20);
}

/* max_tokens above 500: goes on after the end id. */
static struct job *job_submit(struct rig *rig, uint32_t i, uint32_t prompt, uint32_t max_tokens, uint32_t choices)
{
    struct job *job = &rig->jobs[i];
    memset(job, 0, sizeof *job);
    for (uint32_t p = 0; p < prompt; p++) job->prompt[p] = (i * 7 + p * p) % END_ID;
    for (uint32_t c = 0; c < choices; c++) {
        memcpy(job->tokens[c], job->prompt, prompt * sizeof *job->prompt);
        job->choices[c] = (struct choice){.tokens = job->tokens[c], .seed = i * 100 + c};
    }
    struct charge *charge = &job->metered.charge;
    memset(charge->charge_id, (int)i + 1, sizeof charge->charge_id);
    charge->account = account_number(i % 2 ? "odd" : "even");
    strcpy(charge->tenant, i % 2 ? "odd" : "even");
    strcpy(charge->model, "null");
    charge->weight_in_ppm = 1000000;
    charge->weight_hit_ppm = 100000;
    charge->weight_out_ppm = 4000000;
    job->metered.choices = job->counts;
    job->request = (struct request){.id = i + 1,
                                    .owner = job,
                                    .charge = charge,
                                    .service_class = CLASS_DEFAULT,
                                    .prompt = job->prompt,
                                    .prompt_count = prompt,
                                    .choices = job->choices,
                                    .choices_count = choices,
                                    .params = {.temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1},
                                    .max_tokens = max_tokens,
                                    .out_limit = rig->out_limit,
                                    .ignore_eos = max_tokens > 500};
    assert_int_equal(engine_submit(rig->engine, &job->request), ST_OK);
    return job;
}

static bool take(struct rig *rig)
{
    struct event event;
    if (!meter_poll(rig->port, &event)) return false;
    struct job *job = event.request->owner;
    assert_int_equal(job->ends, 0);
    if (event.kind == REQUEST_SCHEDULED) job->scheduled++;
    if (event.kind == CHOICE_TOKENS) {
        assert_true(event.output_count > job->told[event.choice]);
        job->told[event.choice] = event.output_count;
    }
    if (event.kind == REQUEST_DONE || event.kind == REQUEST_REFUSED) {
        job->ends++;
        job->end = event;
    }
    return true;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
}

static void wait_end(struct rig *rig, const struct job *job)
{
    for (uint64_t until = clock_now_ns(clock_system()) + WAIT_S * NS_PER_S; !job->ends;) {
        if (!take(rig)) nap();
        if (clock_now_ns(clock_system()) > until) fail_msg("no end in %d s", WAIT_S);
    }
}

static void rig_empty(struct rig *rig)
{
    meter_stop(rig->meter);
    engine_stop(rig->engine);
    while (take(rig)) {
    }
}

static void rig_stop(struct rig *rig)
{
    rig_empty(rig);
    meter_port_close(rig->port);
    engine_destroy(rig->engine);
    meter_destroy(rig->meter);
    device_destroy(rig->device);
    tokenizer_destroy(rig->tokenizer);
    mem_free(rig->jobs);
}

static void remove_folder(const struct rig *rig)
{
    DIR *folder = opendir(rig->folder);
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", rig->folder, entry->d_name);
        (void)unlink(path);
    }
    if (folder) closedir(folder);
    (void)rmdir(rig->folder);
}

/* ---- what the journal says ---- */

struct told {
    uint32_t opens, finals;
    uint64_t steps;
    struct record record;
};
struct reading {
    struct told of[JOBS];
    uint32_t job_of_handle[4096];
};

static void read_step(void *state, struct step_count count)
{
    struct reading *reading = state;
    assert_true(count.handle < 4096);
    reading->of[reading->job_of_handle[count.handle]].steps += count.ids;
}

static void read_journal(const struct rig *rig, struct reading *reading)
{
    struct journal_reader *reader;
    struct error err = {{0}};
    struct frame frame;
    enum status status;
    memset(reading, 0, sizeof *reading);
    if (journal_reader_open(disk_system(), rig->folder, NULL, 0, &reader, &err) != ST_OK) fail_msg("%s", err.message);
    while ((status = journal_reader_next(reader, UINT64_MAX, &frame, &err)) == ST_OK) {
        struct open_frame open;
        struct record record;
        if (frame.type == FRAME_OPEN) {
            assert_int_equal(frame_read_open(&frame, &open), ST_OK);
            uint32_t job = open.charge.charge_id[0] - 1u;
            reading->of[job].opens++;
            assert_true(open.handle < 4096);
            reading->job_of_handle[open.handle] = job;
        }
        if (frame.type == FRAME_STEP) assert_int_equal(frame_read_step(&frame, read_step, reading), ST_OK);
        if (frame.type == FRAME_FINAL) {
            assert_int_equal(record_decode(frame.payload, frame.length, &record, &err), ST_OK);
            struct told *told = &reading->of[record.charge.charge_id[0] - 1u];
            told->finals++;
            told->record = record;
        }
    }
    if (status != ST_AGAIN) fail_msg("%s", err.message);
    journal_reader_close(reader);
}

static void check_job(const struct reading *reading, const struct job *job)
{
    const struct told *told = &reading->of[job->request.id - 1];
    const struct usage *usage = &job->request.usage;
    uint32_t out = 0;
    for (uint32_t c = 0; c < job->request.choices_count; c++) out += job->choices[c].output_count;
    assert_int_equal(told->opens, 1);
    assert_int_equal(told->finals, 1);
    assert_int_equal(told->record.out, out);
    assert_int_equal(told->record.in_total, job->request.prompt_count);
    assert_int_equal(told->record.in_hit, usage->in_hit);
    assert_true(told->steps >= out && told->steps <= out + job->request.choices_count);
    if (told->record.kind == RECORD_CHARGED)
        assert_int_equal(told->record.units, (usage->in_total - usage->in_hit) * UINT64_C(1000000) +
                                                 usage->in_hit * UINT64_C(100000) + out * UINT64_C(4000000));
    else
        assert_int_equal(told->record.units, 0);
    assert_int_equal(told->record.flags & RECORD_MISMATCH, 0);
}

/* ---- tests ---- */

static void end_to_end(enum commit_mode mode)
{
    struct rig rig;
    rig_start(&rig, false, mode);
    for (uint32_t i = 0; i < JOBS; i++) (void)job_submit(&rig, i, 1 + i * 5, 10 + i, 1 + i % CHOICES);
    for (uint32_t i = 0; i < JOBS; i++) {
        wait_end(&rig, &rig.jobs[i]);
        assert_int_equal(rig.jobs[i].end.kind, REQUEST_DONE);
        for (uint32_t c = 0; c < rig.jobs[i].request.choices_count; c++)
            assert_int_equal(rig.jobs[i].told[c], rig.jobs[i].choices[c].output_count);
    }
    struct reading *reading = mem_alloc(1, sizeof *reading);
    read_journal(&rig, reading); /* an end that came out is in the journal already */
    uint64_t units[2] = {0, 0};
    for (uint32_t i = 0; i < JOBS; i++) {
        check_job(reading, &rig.jobs[i]);
        units[i % 2] += reading->of[i].record.units;
    }
    struct ledger_client client;
    struct account_balance *balance = mem_alloc(1, sizeof *balance);
    struct error err;
    meter_ledger_client(rig.meter, &client);
    for (uint32_t i = 0; i < 2; i++) {
        const char *name = i ? "odd" : "even";
        assert_int_equal(client.calls->balance(client.state, account_number(name), balance, &err), ST_OK);
        assert_int_equal(balance->used, units[i]);
        assert_int_equal(balance->overage, units[i]); /* nobody has bought anything */
    }
    rig_stop(&rig);
    remove_folder(&rig);
    mem_free(balance);
    mem_free(reading);
}

/* ---- energy ---- */

enum { NOTERS = 4, NOTES = 300, SLOT_S = 900 };
static struct meter *noted_meter;

static struct energy_note note_of(const struct charge *charge, uint32_t number)
{
    struct energy_note note = {.energy = {.slot_ms = INT64_C(1790000100000) / (SLOT_S * 1000) * (SLOT_S * 1000) +
                                                     (int64_t)number * SLOT_S * 1000,
                                          .uj_prefill = number,
                                          .uj_decode = 1000,
                                          .uj_idle_share = 7,
                                          .ugco2_loc = 3,
                                          .pue_ppm = PUE_PPM_MIN}};
    energy_note_charge(&note, charge);
    return note;
}

static void *note_energies(void *state)
{
    const struct job *job = state;
    for (uint32_t i = 0; i < NOTES; i++) {
        struct energy_note note = note_of(&job->metered.charge, i);
        assert_int_equal(meter_note_energy(noted_meter, &note), ST_OK);
    }
    return NULL;
}

/* Each record once, in the journal and in the month; what no record can hold is refused and counted. */
static void check_energies(const struct rig *rig, uint32_t of_each)
{
    static uint8_t seen[NOTERS][NOTES];
    struct journal_reader *reader;
    struct error err = {{0}};
    struct frame frame;
    memset(seen, 0, sizeof seen);
    assert_int_equal(journal_reader_open(disk_system(), rig->folder, NULL, 0, &reader, &err), ST_OK);
    while (journal_reader_next(reader, UINT64_MAX, &frame, &err) == ST_OK) {
        struct record record;
        if (frame.type != FRAME_ENERGY) continue;
        assert_int_equal(record_decode(frame.payload, frame.length, &record, &err), ST_OK);
        uint32_t job = record.charge.charge_id[0] - 1u;
        assert_true(job < NOTERS && record.energy.uj_prefill < NOTES);
        assert_int_equal(seen[job][record.energy.uj_prefill]++, 0);
        assert_string_equal(record.charge.tenant, job % 2 ? "odd" : "even");
        assert_string_equal(record.charge.model, "null");
    }
    journal_reader_close(reader);
    for (uint32_t job = 0; job < NOTERS; job++)
        for (uint32_t i = 0; i < of_each; i++) assert_int_equal(seen[job][i], 1);
}

static void test_meter_energy(void **state)
{
    (void)state;
    struct rig rig;
    pthread_t threads[NOTERS];
    rig_start(&rig, false, COMMIT_STEP);
    for (uint32_t i = 0; i < NOTERS; i++) (void)job_submit(&rig, i, 10, 4, 1);
    for (uint32_t i = 0; i < NOTERS; i++) wait_end(&rig, &rig.jobs[i]);
    noted_meter = rig.meter;
    for (uint32_t i = 0; i < NOTERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, note_energies, &rig.jobs[i]), 0);
    for (uint32_t i = 0; i < NOTERS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    struct energy_note bad[5];
    for (uint32_t i = 0; i < 5; i++) bad[i] = note_of(&rig.jobs[0].metered.charge, 1);
    bad[0].energy.uj_host = UNITS_MAX;
    bad[1].energy.pue_ppm = 0;
    bad[2].energy.slot_ms = -1;
    bad[3].account = 0;
    bad[4].mclass = MODEL_CLASSES;
    for (uint32_t i = 0; i < 5; i++) assert_int_equal(meter_note_energy(rig.meter, &bad[i]), ST_INVAL);
    assert_int_equal(billing_note_energy(NULL, &bad[0]), ST_OK);
    rig_empty(&rig);
    meter_port_close(rig.port);
    meter_finish(rig.meter); /* takes what was noted last */
    assert_int_equal(rig.stats.records_energy, NOTERS * NOTES);
    assert_int_equal(rig.stats.energy_dropped, 5);
    check_energies(&rig, NOTES);
    struct ledger_client client;
    struct month_total totals[MODEL_CLASSES];
    struct error err;
    uint64_t records = 0, uj = 0;
    meter_ledger_client(rig.meter, &client);
    for (uint32_t month = 202609; month <= 202610; month++) {
        uint32_t count;
        assert_int_equal(client.calls->month(client.state, account_number("odd"), month, totals, &count, &err), ST_OK);
        if (count > 0) records += totals[0].energy_records, uj += totals[0].energy_uj;
    }
    assert_int_equal(records, NOTERS / 2 * NOTES);
    assert_int_equal(uj, NOTERS / 2 * (NOTES * 1000 + NOTES * (NOTES - 1) / 2));
    engine_destroy(rig.engine);
    meter_destroy(rig.meter);
    device_destroy(rig.device);
    tokenizer_destroy(rig.tokenizer);
    mem_free(rig.jobs);
    remove_folder(&rig);
}

/* No note waits for a disk, and none is lost without being counted: too many at once, and a journal that has failed. */
static void test_meter_energy_that_finds_no_room(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, false, COMMIT_STEP);
    struct job *job = job_submit(&rig, 0, 10, 4, 1);
    wait_end(&rig, job);
    struct energy_note note = note_of(&job->metered.charge, 1);
    gate_set(true, false);
    assert_int_equal(meter_note_energy(rig.meter, &note), ST_OK);
    while (rig.stats.records_energy == 0) nap(); /* the meter has taken it and cannot end its commit */
    for (uint32_t i = 0; i < ENERGY_NOTES_MAX; i++) assert_int_equal(meter_note_energy(rig.meter, &note), ST_OK);
    assert_int_equal(meter_note_energy(rig.meter, &note), ST_LIMIT);
    assert_int_equal(rig.stats.energy_dropped, 1);
    gate_set(false, true); /* ... which fails, and the other segment's too */
    while (!meter_failed(rig.meter)) nap();
    for (int i = 0; i < 5000 && rig.stats.energy_dropped < 1 + ENERGY_NOTES_MAX; i++) nap();
    assert_int_equal(meter_note_energy(rig.meter, &note), ST_IO);
    assert_int_equal(rig.stats.energy_dropped, 2 + ENERGY_NOTES_MAX);
    meter_let_go(rig.meter);
    rig_stop(&rig);
    gate_set(false, false);
    remove_folder(&rig);
}

static void test_meter_end_to_end(void **state)
{
    (void)state;
    end_to_end(COMMIT_STEP);
    end_to_end(COMMIT_GROUP);
    end_to_end(COMMIT_WRITE);
}

/* J3, J4: with the disk held up nothing that costs comes out, whatever the engine has done meanwhile. */
static void test_meter_waits_for_the_disk(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, false, COMMIT_STEP);
    gate_set(true, false);
    struct job *job = job_submit(&rig, 0, 20, 12, 1);
    struct engine_stats stats;
    do {
        nap();
        engine_stats_read(rig.engine, &stats);
        while (take(&rig)) {
        }
        assert_int_equal(job->told[0], 0);
    } while (stats.requests_done == 0);
    for (int i = 0; i < 50; i++) {
        nap();
        while (take(&rig)) {
        }
        assert_int_equal(job->told[0] + job->ends, 0);
    }
    gate_set(false, false);
    wait_end(&rig, job);
    assert_int_equal(job->told[0], job->choices[0].output_count);
    rig_stop(&rig);
    remove_folder(&rig);
}

/* A journal that fails for good: no token comes out until io has been told; then every request ends. */
static void test_meter_fails_with_the_journal(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, false, COMMIT_STEP);
    gate_set(false, true);
    struct job *job = job_submit(&rig, 0, 20, 12, 1);
    while (!meter_failed(rig.meter)) nap();
    const char *why_not = NULL;
    assert_false(meter_accepts(rig.meter, &why_not));
    assert_non_null(why_not);
    for (int i = 0; i < 50; i++) {
        nap();
        while (take(&rig)) {
        }
        assert_int_equal(job->told[0] + job->ends, 0);
    }
    meter_let_go(rig.meter);
    wait_end(&rig, job);
    rig_stop(&rig);
    gate_set(false, false);
    remove_folder(&rig);
}

static void note(struct rig *rig, enum event_kind kind, struct request *request)
{
    bool counted;
    struct event event = {.kind = kind, .request = request};
    pthread_mutex_lock(&rig->meter->work);
    assert_int_equal(meter_note_event(rig->meter, &event, &counted), ST_OK);
    pthread_mutex_unlock(&rig->meter->work);
}

/* Counts that disagree lower the parts of the output with it, so that the record stays one that can be read; and a
 * meter that comes late, behind a slow disk, is no parting of clocks. */
static void test_meter_records_what_disagrees(void **state)
{
    (void)state;
    struct rig rig;
    struct metered_choice counts[1] = {{0}};
    struct metered metered = {.charge = {.charge_id = {1}, .account = 1}, .choices = counts};
    uint32_t tokens[8] = {0};
    struct choice choice = {.tokens = tokens, .output_count = 5};
    rig_start(&rig, false, COMMIT_STEP);
    uint64_t now_ns = clock_now_ns(clock_system());
    struct request request = {.charge = &metered.charge,
                              .prompt_count = 3,
                              .max_tokens = 5,
                              .choices = &choice,
                              .choices_count = 1,
                              .scheduled_ns = now_ns - 5 * NS_PER_S,
                              .done_ns = now_ns,
                              .usage = {.in_total = 3, .out = 5, .out_reasoning = 4, .out_trimmed = 1, .choices = 1}};
    note(&rig, REQUEST_SCHEDULED, &request);
    note(&rig, REQUEST_DONE, &request);
    rig_stop(&rig);
    struct reading *reading = mem_alloc(1, sizeof *reading);
    read_journal(&rig, reading);
    const struct record *record = &reading->of[0].record;
    assert_int_equal(reading->of[0].finals, 1);
    assert_int_equal(record->flags, RECORD_MISMATCH);
    assert_int_equal(record->out + record->out_reasoning + record->out_trimmed, 0);
    assert_true(record->duration_us >= 5000000);
    mem_free(reading);
    remove_folder(&rig);
}

/* A port without an engine: the end of what another server answered comes out when its FINAL is on disk (J4), and the
 * record says what was told; without room nothing is taken. */
static void test_meter_takes_what_io_tells(void **state)
{
    (void)state;
    enum { CALLS = 4 };
    struct rig rig;
    struct meter_port *port;
    struct metered_choice counts[CALLS][2] = {{{0}}};
    struct metered metered[CALLS] = {{.held = 0}};
    uint32_t none[1] = {0};
    struct choice choices[2] = {{.tokens = none}, {.tokens = none}};
    struct request requests[CALLS];
    struct event event, many[2 * PORT_EVENTS];
    rig_start(&rig, false, COMMIT_STEP);
    assert_int_equal(meter_port_open_told(rig.meter, &port), ST_OK);
    assert_false(meter_tell(port, many, 2 * PORT_EVENTS));
    gate_set(true, false);
    uint64_t now_ns = clock_now_ns(clock_system());
    for (uint32_t i = 0; i < CALLS; i++) {
        metered[i] = (struct metered){.charge = {.charge_id = {(uint8_t)(i + 1)},
                                                 .account = 7,
                                                 .weight_in_ppm = 1000000,
                                                 .weight_hit_ppm = 100000,
                                                 .weight_out_ppm = 4000000},
                                      .choices = counts[i]};
        requests[i] = (struct request){
            .charge = &metered[i].charge,
            .max_tokens = 9,
            .choices = choices,
            .choices_count = 2,
            .scheduled_ns = now_ns - NS_PER_S,
            .done_ns = now_ns,
            .usage = {.cause = CAUSE_STOP, .in_total = 50, .in_hit = 10, .out = i * 3, .choices = 2, .estimated = i == 3}};
        const struct event told[] = {
            {.kind = REQUEST_SCHEDULED, .request = &requests[i]},
            {.kind = CHOICE_TOKENS, .request = &requests[i], .output_count = i * 3, .finish = FINISH_STOP},
            {.kind = REQUEST_DONE, .request = &requests[i]}};
        assert_true(meter_tell(port, told, 3));
    }
    while (!gate_waits()) nap();
    for (int i = 0; i < 20; i++) {
        nap();
        while (meter_poll(port, &event)) assert_int_not_equal(event.kind, REQUEST_DONE);
    }
    gate_set(false, false);
    for (uint32_t done = 0; done < CALLS;) {
        if (meter_poll(port, &event))
            done += event.kind == REQUEST_DONE;
        else
            nap();
    }
    meter_port_close(port);
    rig_stop(&rig);
    struct reading *reading = mem_alloc(1, sizeof *reading);
    read_journal(&rig, reading);
    for (uint32_t i = 0; i < CALLS; i++) {
        const struct record *record = &reading->of[i].record;
        assert_int_equal(reading->of[i].opens, 1);
        assert_int_equal(reading->of[i].finals, 1);
        assert_int_equal(record->kind, RECORD_CHARGED);
        assert_int_equal(record->in_total, 50);
        assert_int_equal(record->out, i * 3);
        assert_int_equal(record->units, 40 * 1000000 + 10 * 100000 + i * 3 * 4000000);
        assert_int_equal(record->flags, i == 3 ? RECORD_ESTIMATED : 0);
        assert_true(reading->of[i].steps >= record->out && reading->of[i].steps <= record->out + 2);
    }
    mem_free(reading);
    remove_folder(&rig);
}

/* Until so many tokens are computed, and a commit is held up. */
static void wait_held(const struct rig *rig, uint64_t tokens)
{
    struct engine_stats stats;
    do {
        nap();
        engine_stats_read(rig->engine, &stats);
    } while (stats.generation_tokens < tokens || !gate_waits());
}

/* What was told before the failure and could not come out does so before what was told after it: an end is the last. */
static void test_meter_keeps_the_order_when_it_fails(void **state)
{
    (void)state;
    struct rig rig;
    struct engine_stats stats;
    rig_start(&rig, false, COMMIT_STEP);
    gate_set(true, false);
    rig.out_limit = 50;
    struct job *job = job_submit(&rig, 0, 20, 900, 1);
    wait_held(&rig, 50);
    gate_pass_one();
    assert_true(engine_raise(rig.engine, 1, 100));
    wait_held(&rig, 100); /* tokens wait for the commit that is held; the end is told meanwhile */
    assert_true(engine_cancel(rig.engine, 1, CAUSE_PLATFORM_CANCEL));
    do {
        nap();
        engine_stats_read(rig.engine, &stats);
    } while (stats.requests_done == 0);
    gate_set(false, true);
    while (!meter_failed(rig.meter)) nap();
    meter_let_go(rig.meter);
    wait_end(&rig, job);
    rig_stop(&rig); /* nothing more comes: take() */
    gate_set(false, false);
    remove_folder(&rig);
}

/* A ledger in the process that cannot read the journal ends the service as a journal that cannot be written does. */
static void test_meter_fails_with_the_ledger(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, false, COMMIT_STEP);
    atomic_store(&unreadable, true);
    struct job *job = job_submit(&rig, 0, 20, 12, 1);
    while (!meter_failed(rig.meter)) nap();
    meter_let_go(rig.meter);
    wait_end(&rig, job);
    atomic_store(&unreadable, false);
    rig_stop(&rig);
    remove_folder(&rig);
}

/* The event that the journal could not take comes out too: a segment's half holds 30 open requests. */
static void test_meter_loses_no_event_when_it_fails(void **state)
{
    (void)state;
    struct rig rig;
    rig_start_with(&rig, false, COMMIT_STEP, 65536);
    rig.out_limit = 5; /* none ends before the last has begun */
    for (uint32_t i = 0; i < JOBS_MAX; i++) (void)job_submit(&rig, i, 1, 200, 1);
    while (!meter_failed(rig.meter))
        if (!take(&rig)) nap();
    meter_let_go(rig.meter);
    for (uint32_t i = 0; i < JOBS_MAX; i++) {
        while (!engine_cancel(rig.engine, i + 1, CAUSE_PLATFORM_CANCEL)) nap();
        wait_end(&rig, &rig.jobs[i]);
        assert_int_equal(rig.jobs[i].scheduled, 1);
        assert_int_equal(rig.jobs[i].told[0], rig.jobs[i].choices[0].output_count);
    }
    rig_stop(&rig);
    remove_folder(&rig);
}

/* What still runs at the end is ended, waived and written; a later start finds nothing open. */
static void test_meter_ends_with_requests(void **state)
{
    (void)state;
    struct rig rig;
    rig_start(&rig, false, COMMIT_GROUP);
    for (uint32_t i = 0; i < 4; i++) (void)job_submit(&rig, i, 30, 800, 2);
    while (rig.jobs[3].told[0] == 0)
        if (!take(&rig)) nap();
    rig_empty(&rig);
    struct reading *reading = mem_alloc(1, sizeof *reading);
    read_journal(&rig, reading);
    for (uint32_t i = 0; i < 4; i++) {
        assert_int_equal(rig.jobs[i].ends, 1);
        check_job(reading, &rig.jobs[i]);
        if (rig.jobs[i].request.usage.cause == CAUSE_PLATFORM_CANCEL)
            assert_int_equal(reading->of[i].record.kind, RECORD_WAIVED);
    }
    rig_stop(&rig);
    rig_meter(&rig, false, COMMIT_STEP);
    assert_int_equal(rig.report.closed, 0);
    assert_false(rig.report.created);
    meter_destroy(rig.meter);
    remove_folder(&rig);
    mem_free(reading);
}

/* Packages: an order through the journal, a lease for the first hold, and no more than was bought. */
static void packages(enum commit_mode mode)
{
    struct rig rig;
    struct ledger_client client;
    struct error err;
    rig_start(&rig, true, mode);
    meter_ledger_client(rig.meter, &client);
    struct metered metered = {.charge = {.account = account_number("buyer")}};
    struct lease_ask ask = {.least = 60, .most = 100};
    struct order order = {
        .id = "o1", .account = account_number("buyer"), .package = "p1", .units = 250, .class_mask = 1};
    enum ledger_answer answer;
    assert_int_equal(client.calls->order(client.state, &order, &answer, &err), ST_OK);
    assert_int_equal(answer, LEDGER_OK);
    assert_int_equal(client.calls->order(client.state, &order, &answer, &err), ST_OK);
    assert_int_equal(answer, LEDGER_DUP);
    uint64_t sum = 0, got;
    enum lease_verdict verdict;
    uint64_t until = clock_now_ns(clock_system()) + WAIT_S * NS_PER_S;
    while ((verdict = meter_hold(rig.meter, &metered, &ask, &got)) != LEASE_EMPTY) {
        if (verdict == LEASE_HELD) {
            sum += got;
            ask = (struct lease_ask){.least = 1, .most = 100};
        } else {
            assert_int_equal(verdict, LEASE_WAITS);
            nap();
        }
        assert_true(clock_now_ns(clock_system()) < until);
    }
    assert_int_equal(sum, 250);
    assert_int_equal(metered.held, 250);
    assert_true(meter_answers(rig.meter) > 0);
    meter_drop(rig.meter, &metered);
    assert_int_equal(metered.held, 0);
    rig_stop(&rig);
    remove_folder(&rig);
}

static void test_meter_packages(void **state)
{
    (void)state;
    packages(COMMIT_STEP);
    packages(COMMIT_GROUP);
}

/* What the journal could not give back never gets into it: the ledger goes on, and so does the next start. */
static void test_meter_refuses_orders(void **state)
{
    (void)state;
    struct rig rig;
    struct ledger_client client;
    struct error err;
    rig_start(&rig, true, COMMIT_STEP);
    meter_ledger_client(rig.meter, &client);
    struct order good = {.id = "o1", .account = account_number("buyer"), .package = "p1", .units = 9, .class_mask = 1};
    struct order bad[] = {good, good, good, good};
    memcpy(bad[0].id, "line\n", 6);
    bad[1].id[0] = 0;
    memcpy(bad[2].package, "tab\t", 5);
    bad[3].op = PACKAGE_REAP; /* has its own call */
    enum ledger_answer answer;
    for (uint32_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        answer = LEDGER_OK;
        assert_int_equal(client.calls->order(client.state, &bad[i], &answer, &err), ST_OK);
        assert_int_equal(answer, LEDGER_BADARG);
    }
    char too_long[ORDER_ID_MAX + 2] = "";
    memset(too_long, 'x', ORDER_ID_MAX + 1);
    const char *const ids[] = {"", "line\n", too_long};
    for (uint32_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        answer = LEDGER_OK;
        assert_int_equal(client.calls->account_set(client.state, good.account, ids[i], false, &answer, &err), ST_OK);
        assert_int_equal(answer, LEDGER_BADARG);
    }
    assert_int_equal(client.calls->order(client.state, &good, &answer, &err), ST_OK);
    assert_int_equal(answer, LEDGER_OK);
    assert_int_equal(client.calls->account_set(client.state, good.account, "o2", false, &answer, &err), ST_OK);
    assert_int_equal(answer, LEDGER_OK);
    rig_stop(&rig);
    rig_meter(&rig, true, COMMIT_STEP);
    meter_ledger_client(rig.meter, &client);
    assert_int_equal(client.calls->order(client.state, &good, &answer, &err), ST_OK);
    assert_int_equal(answer, LEDGER_DUP);
    meter_destroy(rig.meter);
    remove_folder(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_meter_end_to_end),
        cmocka_unit_test(test_meter_energy),
        cmocka_unit_test(test_meter_energy_that_finds_no_room),
        cmocka_unit_test(test_meter_waits_for_the_disk),
        cmocka_unit_test(test_meter_fails_with_the_journal),
        cmocka_unit_test(test_meter_keeps_the_order_when_it_fails),
        cmocka_unit_test(test_meter_fails_with_the_ledger),
        cmocka_unit_test(test_meter_loses_no_event_when_it_fails),
        cmocka_unit_test(test_meter_records_what_disagrees),
        cmocka_unit_test(test_meter_takes_what_io_tells),
        cmocka_unit_test(test_meter_ends_with_requests),
        cmocka_unit_test(test_meter_packages),
        cmocka_unit_test(test_meter_refuses_orders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
