package load

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/workloads/file"
	"github.com/stagebench/stagebench/workloads/preset"
	"github.com/stagebench/stagebench/workloads/trace"
)

// Replay says how the times of a trace are changed, in the words of the flags.
type Replay trace.Replay

// Validate says what is wrong with the settings.
func (r Replay) Validate() error {
	if err := trace.Replay(r).Validate(); err != nil {
		return fmt.Errorf("--speed %v, --max-gap %v: %w", r.Speed, r.MaxGap, err)
	}
	return nil
}

// Changes reports whether the times are changed at all, for which there has to be
// a trace.
func (r Replay) Changes() bool { return r != Replay{Speed: 1} }

// Maker makes loads by name.
type Maker struct {
	// Data is the data set that the photo service holds; its seed is that of
	// workload files, too.
	Data sut.Data
	// Replay says how traces are replayed.
	Replay Replay
	// Service says that the target is the photo service, so that a trace's paths
	// become photos and its clients users. Any other server is asked for the paths
	// themselves.
	Service bool
}

// tracePrefix tells a trace from a workload file.
const tracePrefix = "trace:"

// Make makes the load of that name: trace:FILE, a FILE.yaml, or a workload that
// we ship. Errors say on a second line what to do.
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
		return Load{}, fmt.Errorf("workload file: %w", err)
	}
	workload, err := file.Read(text, path, os.DirFS(filepath.Dir(path)), m.Data.Seed)
	return Load{Workload: workload}, err
}

// trace reads a trace and says what is sent of it.
func (m Maker) trace(path string) (l Load, err error) {
	f, err := os.Open(path)
	if err != nil {
		return l, fmt.Errorf("trace: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	t, err := trace.Read(f, filepath.Base(path))
	if err != nil {
		return l, err
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
		Mapped: int64(len(t.Records())), Skipped: skipped, Paths: int64(s.Paths), Clients: int64(s.Clients),
		SpanNS: int64(s.Span), LengthNS: int64(l.Length),
	}
	for reason, n := range s.Broken {
		l.Trace.Skipped["broken: "+reason] = n
	}
	return l, nil
}

// uploadCount is how many different JPEGs are uploaded in turns, of the default
// size.
const (
	uploadCount  = 16
	uploadWidth  = 160
	uploadHeight = 120
)

// params describe the data set to the shipped workloads.
func (m Maker) params() (preset.Params, error) {
	counts, known := m.Data.Counts()
	if !known {
		return preset.Params{}, fmt.Errorf("unknown data set %q\nwant one of %v", m.Data.Size, sut.DataSizes())
	}
	var uploads [][]byte
	for i := range uploadCount {
		uploads = append(uploads, imaging.Sample(m.Data.Seed+uint64(i), uploadWidth, uploadHeight))
	}
	return preset.Params{
		Seed: m.Data.Seed, Users: counts.Users, Photos: counts.Photos,
		Login:   func(user int) (string, string) { return sut.SeedLogin(user), sut.SeedPassword },
		PhotoID: func(photo int) uint64 { return uint64(photos.PhotoID(photo, counts)) },
		Owner:   func(photo int) int { return int(photos.Owner(photo, counts)) },
		Uploads: uploads,
	}, nil
}
