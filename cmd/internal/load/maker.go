package load

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/workloads/file"
	"github.com/stagebench/stagebench/workloads/pace"
	"github.com/stagebench/stagebench/workloads/preset"
	"github.com/stagebench/stagebench/workloads/trace"
)

// Replay is trace.Replay with errors that name the flags of the command.
type Replay trace.Replay

// Validate returns an error that names the flags if a setting is out of range.
func (r Replay) Validate() error {
	if err := trace.Replay(r).Validate(); err != nil {
		return fmt.Errorf("--speed %v, --max-gap %v: %w", r.Speed, r.MaxGap, err)
	}
	return nil
}

// Changes reports whether the settings change the times of a trace. They then require a
// trace.
func (r Replay) Changes() bool { return r != Replay{Speed: 1} }

// Maker makes loads by name.
type Maker struct {
	// Data is the data set of the photo service. Workload files use its seed, too.
	Data sut.Data
	// Replay configures how traces are replayed.
	Replay Replay
	// Service is true if the target is the photo service: the paths of a trace then become
	// photos and its clients become users. Any other target gets the paths unchanged.
	Service bool
}

// tracePrefix marks the name of a trace file.
const tracePrefix = "trace:"

// Make makes the load of a name: trace:FILE, FILE.yaml, or a preset. The second line of
// an error says what to do.
func (m Maker) Make(name string) (Load, error) {
	if path, isTrace := strings.CutPrefix(name, tracePrefix); isTrace {
		return m.trace(path)
	}
	if extension := filepath.Ext(name); extension == ".yaml" || extension == ".yml" {
		return m.file(name)
	}
	params, err := m.params()
	if err != nil {
		return Load{}, err
	}
	workload, err := preset.New(name, params)
	if err != nil {
		return Load{}, fmt.Errorf("%w\nor a file: FILE.yaml, trace:FILE; see: stagebench list workloads", err)
	}
	return Load{Workload: workload}, nil
}

func (m Maker) file(path string) (Load, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Load{}, fmt.Errorf("workload file: %w\nname a file that you can read, or see: stagebench list workloads", err)
	}
	workload, err := file.Read(text, path, os.DirFS(filepath.Dir(path)), m.Data.Seed)
	l := Load{Workload: workload}
	if phased, ok := workload.(interface{ Phases() []pace.Phase }); ok && len(phased.Phases()) > 0 {
		l.Times, l.Length, err = pace.Phases(phased.Phases(), m.Data.Seed)
	}
	return l, err
}

// trace reads a trace and counts the lines that are sent and skipped.
func (m Maker) trace(path string) (l Load, err error) {
	f, err := os.Open(path)
	if err != nil {
		return l, fmt.Errorf("trace: %w\nname an access log that you can read: trace:FILE", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	spool, err := openSpool()
	if err != nil {
		return l, err
	}
	t, err := trace.Read(f, filepath.Base(path), spool)
	if err != nil {
		return l, errors.Join(err, spool.Close())
	}
	skipped := map[string]int64{}
	if m.Service {
		var params preset.Params
		if params, err = m.params(); err == nil {
			l.Workload, t, skipped, err = preset.FromTrace(t, params)
		}
	} else {
		l.Workload, err = t.Workload()
	}
	if err != nil {
		return l, err
	}
	if l.Times, err = t.Schedule(trace.Replay(m.Replay)); err != nil {
		return l, err
	}
	l.Length = t.Length(l.Times)
	s := t.Stats()
	l.Trace = &results.Trace{
		Lines: s.Lines, Broken: s.BrokenLines(), OutOfOrder: s.OutOfOrder, DuplicateTimes: s.DuplicateTimes,
		Mapped: int64(t.Len()), Skipped: skipped, Paths: int64(s.Paths), Clients: int64(s.Clients),
		SpanNS: int64(s.Span), LengthNS: int64(l.Length),
	}
	for reason, n := range s.Broken {
		l.Trace.Skipped["broken: "+reason] = n
	}
	return l, nil
}

// openSpool opens a temporary file without a name. It ends with this process at the latest.
func openSpool() (*os.File, error) {
	if spool, err := os.OpenFile(os.TempDir(), os.O_RDWR|unix.O_TMPFILE, 0o600); err == nil {
		return spool, nil
	}
	// This filesystem has no files without a name.
	spool, err := os.CreateTemp("", "stagebench-trace-")
	if err != nil {
		return nil, fmt.Errorf("trace: %w\nset TMPDIR to a directory that you may write", err)
	}
	return spool, os.Remove(spool.Name())
}

// uploadCount is the number of different JPEGs that uploads use in turn. Width and height
// are the default size, in pixels.
const (
	uploadCount  = 16
	uploadWidth  = 160
	uploadHeight = 120
)

// Workload celebrity has this number of hot users. All of them are on one shard if shard.by is modulo and shard.count
// is this number of shards, or 2.
const (
	celebrities     = 4
	celebrityShards = 4
)

// params returns the parameters of the presets for the data set.
func (m Maker) params() (preset.Params, error) {
	counts, known := m.Data.Counts()
	if !known {
		return preset.Params{}, fmt.Errorf("unknown data set %q\nwant one of %v", m.Data.Size, sut.DataSizes())
	}
	var uploads [][]byte
	for i := range uploadCount {
		uploads = append(uploads, imaging.Sample(m.Data.Seed+uint64(i), uploadWidth, uploadHeight))
	}
	var hot []int
	for _, user := range photos.Celebrities(counts, celebrities, celebrityShards) {
		hot = append(hot, int(user))
	}
	return preset.Params{
		Seed: m.Data.Seed, Users: counts.Users, Photos: counts.Photos,
		Login:       func(user int) (string, string) { return sut.SeedLogin(user), sut.SeedPassword },
		PhotoID:     func(photo int) uint64 { return uint64(photos.PhotoID(photo, counts)) },
		Owner:       func(photo int) int { return int(photos.Owner(photo, counts)) },
		Celebrities: hot, Uploads: uploads, ImageVersion: photos.ImageVersion,
	}, nil
}
