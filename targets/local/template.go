package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/proc"
	"github.com/stagebench/stagebench/targets/topology"
)

const (
	// A template is a directory with these entries. It never changes after it was built,
	// because blob files of running systems are hard links to its files. The template of a
	// sharded database has one database for each shard, db-1 and so on, and db-new without
	// rows, for a shard that is added later.
	templateDB    = "db"
	templateNewDB = "db-new"
	templateBlob  = "blob"
	templateMark  = "template.json"
	// lockSuffix ends the name of the file that is locked while a template is built.
	lockSuffix = ".lock"

	// templateWork is the name of the directory in which a template is built.
	templateWork = "template"
	templateHost = "template"

	// seedTimeout bounds the generation and loading of a data set; the large
	// one takes minutes.
	seedTimeout = 30 * time.Minute
	// seedExit bounds the exit of the seed node after its work is done.
	seedExit = 10 * time.Second
	// templateStop bounds the clean stop of the database, which writes the loaded data to
	// disk.
	templateStop = time.Minute
	// lockPoll is the poll interval for a lock that another process holds.
	lockPoll = 20 * time.Millisecond
)

// templateInfo is the content of templateMark. Only people read it.
type templateInfo struct {
	Data    sut.Data   `json:"data"`
	Engine  sut.Engine `json:"engine"`
	Version string     `json:"version"`
	BuiltNS int64      `json:"built_ns"` // how long the build took
}

func needsTemplate(t sut.Topology) bool {
	for _, n := range t.Nodes {
		if n.Role == sut.DB || n.Role == sut.Blob {
			return true
		}
	}
	return false
}

// templateEngine returns the engine of the topology's databases.
func templateEngine(t sut.Topology) (sut.Engine, error) {
	var engine sut.Engine
	for _, n := range t.Nodes {
		if n.Role != sut.DB {
			continue
		}
		if engine != "" && n.Engine != engine {
			return "", fmt.Errorf("databases of two engines, %s and %s, cannot share one data set", engine, n.Engine)
		}
		engine = n.Engine
	}
	if engine == "" {
		return "", errors.New("a blob store without a database cannot be filled")
	}
	return engine, nil
}

// templatePart is a database of a template.
type templatePart struct {
	dir   string // name of its directory
	shard int    // number of the shard that it holds the rows of; 0 = all rows
}

// templateParts lists the databases of a template for a number of shards; 0 = not sharded. A
// further shard has no rows, because no user is assigned to it.
func templateParts(shards int) []templatePart {
	if shards == 0 {
		return []templatePart{{dir: templateDB}}
	}
	var parts []templatePart
	for shard := 1; shard <= shards; shard++ {
		parts = append(parts, templatePart{dir: shardDir(shard), shard: shard})
	}
	return append(parts, templatePart{dir: templateNewDB, shard: shards + 1})
}

// shardDir returns the name of the directory with the database of a shard.
func shardDir(shard int) string { return fmt.Sprintf("%s-%d", templateDB, shard) }

// countShards returns the number of shards of a topology, 0 if the database is not sharded.
func countShards(t sut.Topology) (shards int) {
	for _, n := range t.Nodes {
		shards = max(shards, n.Shard)
	}
	return shards
}

// templateKey returns the name of the template for a topology.
func templateKey(t sut.Topology, info templateInfo) string {
	key := fmt.Sprintf("%s-%d-%s-%s", info.Data.Size, info.Data.Seed, info.Engine, info.Version)
	if shards := countShards(t); shards > 0 {
		key += fmt.Sprintf("-%s-%d-%s", sut.Sharded, shards, ladder.ShardOf(t.Knobs).By)
	}
	return key
}

// templateOf returns the directory with the initial rows of a database. A shard that is added while the system serves
// has none, also if an earlier shard had its number: others have the rows now.
func (s *System) templateOf(n *node) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	part := templateDB
	switch {
	case n.Shard > 0 && n.joining:
		part = templateNewDB
	case n.Shard > 0:
		part = shardDir(n.Shard)
	}
	return filepath.Join(s.template, part)
}

// findTemplate returns the directory of the template for this topology's data and engine.
// It builds the template if it is missing. If several processes need the same template, one
// builds it and the others wait.
func (s *System) findTemplate(ctx context.Context) (string, error) {
	if !needsTemplate(s.opts.Topology) {
		return "", nil
	}
	engine, err := templateEngine(s.opts.Topology)
	if err != nil {
		return "", err
	}
	version, err := s.opts.TemplateVersion(engine)
	if err != nil {
		return "", fmt.Errorf("version of the template for %s: %w", engine, err)
	}
	info := templateInfo{Data: s.opts.Data, Engine: engine, Version: version}
	key := templateKey(s.opts.Topology, info)
	if !topology.PlainName(key) {
		return "", fmt.Errorf("the template name %q contains a character that is not allowed", key)
	}
	dir := filepath.Join(s.opts.TemplateDir, key)
	if built(dir) {
		return dir, nil
	}
	if err := proc.PrivateDir(s.opts.TemplateDir); err != nil {
		return "", fmt.Errorf("make the template directory: %w", err)
	}
	unlock, err := lockFile(ctx, dir+lockSuffix)
	if err != nil {
		return "", fmt.Errorf("lock template %s (another process may be building it): %w", key, err)
	}
	defer unlock()
	if built(dir) {
		return dir, nil
	}
	s.say("building the %s data set for %s; it is kept for later runs", info.Data.Size, engine)
	start := time.Now()
	if err := s.buildTemplate(ctx, dir, info); err != nil {
		return "", fmt.Errorf("build template %s: %w", key, err)
	}
	s.say("the data set is ready after %v", time.Since(start).Round(time.Millisecond))
	return dir, nil
}

// built reports whether a template exists. A template gets its name only when it is
// complete, so its existence is enough.
func built(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, templateMark))
	return err == nil
}

// buildTemplate fills the databases and a blob store in the private directory and moves them
// into the cache. A server that runs as another user can reach its files only in the
// private directory. The caller holds the template's lock.
func (s *System) buildTemplate(ctx context.Context, dir string, info templateInfo) error {
	start := time.Now()
	work := filepath.Join(s.dir, templateWork)
	for _, dir := range []string{work, filepath.Join(work, templateBlob)} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	photos := filepath.Join(work, templateBlob) // the first run of the seed node fills it, "" = it is full
	for _, part := range templateParts(countShards(s.opts.Topology)) {
		if err := s.load(ctx, filepath.Join(work, part.dir), part.shard, info.Engine, photos); err != nil {
			return err
		}
		photos = ""
	}
	info.BuiltNS = time.Since(start).Nanoseconds()
	text, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(work, templateMark), append(text, '\n'), 0o600); err != nil {
		return err
	}
	return publish(ctx, work, dir)
}

// load starts a database on an empty directory, fills it with a seed node and stops it
// cleanly. The seed node also fills the directory photos, unless it is "".
func (s *System) load(ctx context.Context, dir string, shard int, engine sut.Engine, photos string) (err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	host, err := s.opts.Budgets.NewHost(templateHost, 0, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Remove()) }()
	addresses := topology.Addresses(filepath.Base(s.dir), topology.MaxHosts)
	knobs := maps.Clone(s.opts.Topology.Knobs)
	delete(knobs, "db.capacity_mb") // a data set that is larger is loaded, too, and the database is full from the start
	config := sut.NodeConfig{
		Node: "template-db", Host: templateHost, Role: sut.DB, Engine: engine,
		Listen: addresses[len(addresses)-1], Dir: dir, Shard: shard, Procs: procsFor(0),
		DrainSeconds: templateStop.Seconds(), Secret: s.secret, Knobs: knobs, Data: s.opts.Data,
	}
	leaf, err := host.Leaf(config.Node)
	if err != nil {
		return err
	}
	db, ready, err := s.launch(ctx, leaf, config, s.opts.readyTimeout, templateStop+time.Second)
	if err != nil {
		return err
	}
	if err := s.seed(ctx, photos, config, ready); err != nil {
		db.Kill()
		db.Wait()
		return err
	}
	if exit := db.Stop(ctx); !exit.Clean() {
		return fmt.Errorf("the loaded database did not stop cleanly: %w",
			errors.Join(errors.New(causeOf(exit)), context.Cause(ctx)))
	}
	return nil
}

// seed runs the seed node, which fills the database and the directory photos. The seed node is
// ready when its work is done, and exits when its standard input closes.
func (s *System) seed(ctx context.Context, photos string, db sut.NodeConfig, ready sut.Ready) (err error) {
	host, err := s.opts.Budgets.NewHost(templateHost, 0, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Remove()) }()
	config := db
	config.Node, config.Role, config.Dir = "template-seed", sut.Seed, photos
	config.DrainSeconds = seedExit.Seconds()
	config.Wiring.Uses = map[sut.Role][]sut.Peer{sut.DB: {{Node: db.Node, Address: ready.Address, Shard: db.Shard}}}
	leaf, err := host.Leaf(config.Node)
	if err != nil {
		return err
	}
	seed, _, err := s.launch(ctx, leaf, config, seedTimeout, seedExit)
	if err != nil {
		return err
	}
	seed.CloseStdin()
	bound := time.NewTimer(seedExit)
	defer bound.Stop()
	select {
	case <-seed.Done():
	case <-bound.C:
		seed.Kill()
	case <-ctx.Done():
		seed.Kill()
	}
	exit := seed.Wait()
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("wait until %s exits: %w", config.Node, err)
	}
	if !exit.Clean() {
		return fmt.Errorf("%s: %s after its work was done", config.Node, causeOf(exit))
	}
	return nil
}

// publish moves a finished template into the cache and gives it its name in one step, after
// its files are on disk. Without that order, a crash could leave an incomplete template.
func publish(ctx context.Context, work, dir string) error {
	if err := removeStaged(dir); err != nil {
		return err
	}
	staged, err := os.MkdirTemp(filepath.Dir(dir), staging(dir))
	if err != nil {
		return err
	}
	err = moveInto(ctx, staged, work)
	if err == nil {
		err = os.Rename(filepath.Join(staged, templateWork), dir)
	}
	return errors.Join(err, os.RemoveAll(staged))
}

// staging returns the prefix of the names of the directories from which a template is moved.
func staging(dir string) string { return "." + filepath.Base(dir) + "." }

// removeStaged removes what builders of a template left behind that died. The caller holds the lock.
func removeStaged(dir string) error {
	parent := filepath.Dir(dir)
	entries, err := os.ReadDir(parent)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), staging(dir)) {
			if err := os.RemoveAll(filepath.Join(parent, entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// moveInto moves the template into a directory of the cache, which may be on another device,
// and syncs it to disk.
func moveInto(ctx context.Context, staged, work string) error {
	moved := filepath.Join(staged, templateWork)
	err := os.Rename(work, moved)
	if errors.Is(err, unix.EXDEV) {
		err = copyTree(ctx, moved, work, false)
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(moved, 0o700); err != nil { // a server of another user could pass through work
		return err
	}
	cache, err := os.Open(staged)
	if err != nil {
		return err
	}
	defer cache.Close()
	if err := unix.Syncfs(int(cache.Fd())); err != nil {
		return &fs.PathError{Op: "syncfs", Path: staged, Err: err}
	}
	return nil
}

// lockFile waits for an exclusive lock. The kernel releases it when this process ends.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			file.Close()
			return nil, &fs.PathError{Op: "flock", Path: path, Err: err}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			file.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// copier copies one tree.
type copier struct {
	link  bool // try hard links; false after the filesystem has refused one
	clone bool // try reflinks (shared blocks); false after the filesystem has refused one
}

// copyTree copies a directory with modes and owners, because a server refuses data that
// another user owns. With link, it makes hard links instead of copies of files. That is
// only for files that are replaced and never written in place. Sockets and pipes are
// left out.
func copyTree(ctx context.Context, dst, src string, link bool) error {
	c := &copier{link: link, clone: true}
	return filepath.WalkDir(src, func(path string, entry fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		return c.copy(filepath.Join(dst, rel), path, info)
	})
}

func (c *copier) copy(dst, src string, info fs.FileInfo) error {
	switch info.Mode().Type() {
	case fs.ModeDir:
		if err := os.Mkdir(dst, 0o700); err != nil {
			return err
		}
		if err := own(dst, info); err != nil {
			return err
		}
		return os.Chmod(dst, info.Mode().Perm())
	case fs.ModeSymlink:
		to, err := os.Readlink(src)
		if err != nil {
			return err
		}
		if err := os.Symlink(to, dst); err != nil {
			return err
		}
		return own(dst, info)
	case 0:
		if c.link {
			err := os.Link(src, dst)
			if err == nil {
				return nil
			}
			// Copy if the device differs, the filesystem has no links, or a file has too many.
			if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EMLINK) {
				return err
			}
			c.link = errors.Is(err, unix.EMLINK)
		}
		return c.copyFile(dst, src, info)
	default:
		return nil
	}
}

func (c *copier) copyFile(dst, src string, info fs.FileInfo) (err error) {
	from, err := os.Open(src)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if c.clone {
		c.clone = unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil
	}
	if !c.clone {
		if _, err := io.Copy(to, from); err != nil { // uses copy_file_range(2) if the kernel supports it
			return err
		}
	}
	if err := own(dst, info); err != nil {
		return err
	}
	return to.Chmod(info.Mode().Perm())
}

// own sets the owner of a copy to the owner of the original. It does nothing unless we are
// root, because only root may change owners.
func own(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 {
		return nil
	}
	return os.Lchown(path, int(stat.Uid), int(stat.Gid))
}
