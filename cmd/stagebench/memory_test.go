package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// No client can make a host exceed its memory: each bomb is thrown at a system with the default memory of hosts. No
// node restarts, and another client is served while the bomb lasts.
func TestMemoryBombs(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBombing(t, sut.Caches, knobs)
			b.throw(t, []bomb{
				{"uploads of 8 MiB", b.uploads},
				{"slow uploads of 8 MiB", b.slowUploads},
				{"small files that declare many pixels", b.declared},
				{"images that nobody reads", b.unreadImages},
				{"headers of 1 MB", b.longHeaders},
				{"unfinished headers", b.unfinishedHeaders},
				{"unfinished commands", b.unfinishedCommands},
				{"unfinished SQL", b.unfinishedSQL},
			})
		})
	}
	// All nodes share the memory of one host.
	t.Run("single", func(t *testing.T) {
		t.Parallel()
		b := newBombing(t, sut.Single, sut.Knobs{})
		b.throw(t, []bomb{
			{"uploads of 8 MiB", b.uploads},
			{"slow uploads of 8 MiB", b.slowUploads},
			{"images that nobody reads", b.unreadImages},
			{"unfinished headers", b.unfinishedHeaders},
			{"unfinished SQL", b.unfinishedSQL},
		})
	})
}

// bomb sends what takes memory. It returns connections that stay open while another client must be served.
type bomb struct {
	name  string
	throw func(*testing.T) (hold []net.Conn)
}

// newBombing brings a system with one host for each tier of a stage up.
func newBombing(t *testing.T, stage sut.Stage, engines sut.Knobs) *bombing {
	t.Helper()
	knobs := maps.Clone(engines)
	knobs["web.hosts"], knobs["db.replicas"] = "1", "0"
	b := &bombing{rig: bringUpSized(t, stage, knobs, roomy), picture: largeJPEG(t)}
	b.front = b.topology.Frontends[0]
	b.logIn(t)
	return b
}

// throw throws bombs, and checks that another client is served during each and that all hosts survive.
func (b *bombing) throw(t *testing.T, bombs []bomb) {
	t.Helper()
	watched := make(chan struct{})
	peaks := b.watchMemory(watched)
	for _, bomb := range bombs {
		began := time.Now()
		held := bomb.throw(t)
		b.othersAreServed(t, bomb.name)
		t.Logf("%s: %v", bomb.name, time.Since(began).Round(time.Millisecond))
		for _, conn := range held {
			_ = conn.Close()
		}
	}
	close(watched)
	b.compare(t, <-peaks)
}

// bombing is a system under attack.
type bombing struct {
	*rig
	front   string // the node that clients send their requests to
	picture []byte // a JPEG of 12 million pixels
	cookie  string
}

// largeJPEG returns a JPEG of the largest permitted size.
func largeJPEG(t *testing.T) []byte {
	t.Helper()
	var file bytes.Buffer
	picture := image.NewYCbCr(image.Rect(0, 0, 4000, 3000), image.YCbCrSubsampleRatio444)
	if err := jpeg.Encode(&file, picture, nil); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

// padded returns a JPEG with comments that make it 8 MiB large.
func padded(picture []byte) []byte {
	const size = 8 << 20
	file := bytes.Clone(picture[:2])
	for left := size - len(picture); left >= 4; {
		n := min(left, 65535)
		file = binary.BigEndian.AppendUint16(append(file, 0xff, 0xfe), uint16(n-2))
		file = append(file, make([]byte, n-4)...)
		left -= n
	}
	return append(file, picture[2:]...)
}

// declaring returns a file of a few bytes that declares a JPEG of this size. It is progressive, so a decoder that
// believes it takes memory for the coefficients of all its pixels.
func declaring(width, height uint16, components byte) []byte {
	file := []byte{0xff, 0xd8, 0xff, 0xc2, 0, 8 + 3*components, 8}
	file = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(file, height), width)
	file = append(file, components)
	scan := []byte{0xff, 0xda, 0, 6 + 2*components, components}
	for i := range components {
		file = append(file, i+1, 0x11, 0)
		scan = append(scan, i+1, 0)
	}
	return append(append(append(file, scan...), 0, 0, 0), 0, 0xff, 0xd9)
}

func (b *bombing) logIn(t *testing.T) {
	t.Helper()
	body := fmt.Sprintf(`{"login": %q, "password": %q}`, sut.SeedLogin(1), sut.SeedPassword)
	response, err := http.Post(b.Endpoints()[0]+"/api/login", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close() // only the header matters
	for _, cookie := range response.Cookies() {
		b.cookie += cookie.Name + "=" + cookie.Value + "; "
	}
	if response.StatusCode != http.StatusOK {
		t.Fatalf("login: %s", response.Status)
	}
}

// upload sends an upload to the balancer. It returns the status and the body of the answer.
func (b *bombing) upload(mediaType string, body []byte) (int, string, error) {
	request, err := http.NewRequest(http.MethodPost, b.Endpoints()[0]+"/api/photos?title=bomb", bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	request.Header.Set("Content-Type", mediaType)
	request.Header.Set("Cookie", b.cookie)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}

// uploads sends pictures of the largest size at once, as files and as forms.
func (b *bombing) uploads(t *testing.T) []net.Conn {
	file := padded(b.picture)
	var form bytes.Buffer
	writer := multipart.NewWriter(&form)
	part, err := writer.CreateFormFile("photo", "photo.jpg")
	if err == nil {
		_, err = part.Write(file)
	}
	if err := errors.Join(err, writer.Close()); err != nil {
		t.Fatal(err)
	}
	statuses := b.parallel(t, 24, func(i int) (int, string, error) {
		if i%2 == 0 {
			return b.upload("image/jpeg", file)
		}
		return b.upload(writer.FormDataContentType(), form.Bytes())
	})
	if statuses[http.StatusCreated] == 0 || statuses[http.StatusCreated]+statuses[http.StatusServiceUnavailable] < 24 {
		t.Errorf("statuses %v, want 201 or 503", statuses)
	}
	return nil
}

// parallel calls send n times at once and counts the statuses. A connection that fails counts as status 0: the balancer
// may close one while the client is still sending.
func (b *bombing) parallel(t *testing.T, n int, send func(i int) (int, string, error)) map[int]int {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	statuses := map[int]int{}
	for i := range n {
		all.Go(func() {
			status, text, err := send(i)
			mu.Lock()
			defer mu.Unlock()
			if statuses[status]++; statuses[status] == 1 {
				t.Logf("status %d: %s %v", status, strings.TrimSpace(text), err)
			}
		})
	}
	all.Wait()
	return statuses
}

// slowUploads sends a part of each of many large uploads.
func (b *bombing) slowUploads(t *testing.T) []net.Conn {
	header := fmt.Sprintf("POST /api/photos HTTP/1.1\r\nHost: x\r\nCookie: %s\r\nContent-Type: image/jpeg\r\n"+
		"Content-Length: %d\r\n\r\n", b.cookie, 8<<20)
	return b.flood(t, b.front, 300, append([]byte(header), make([]byte, 1<<20)...))
}

// declared sends small files that declare many pixels. Those with more than a host can process are refused.
func (b *bombing) declared(t *testing.T) []net.Conn {
	for _, test := range []struct {
		file []byte
		want int
		text string
	}{
		{declaring(65535, 65535, 3), http.StatusRequestEntityTooLarge, "12 million pixels"},
		{declaring(4000, 3000, 4), http.StatusRequestEntityTooLarge, "the limit is"},
		{declaring(4000, 3000, 3), http.StatusUnsupportedMediaType, ""},
	} {
		statuses := b.parallel(t, 12, func(int) (int, string, error) {
			status, text, err := b.upload("image/jpeg", test.file)
			if status == test.want && !strings.Contains(text, test.text) {
				return -1, text, err
			}
			return status, text, err
		})
		if statuses[test.want]+statuses[http.StatusServiceUnavailable] < 12 || statuses[test.want] == 0 {
			t.Errorf("statuses %v, want %d", statuses, test.want)
		}
	}
	return nil
}

// unreadImages asks for large originals and reads no answer.
func (b *bombing) unreadImages(t *testing.T) []net.Conn {
	var photo struct{ ID int64 }
	eventually(t, "a large photo is stored", func() bool {
		status, text, err := b.upload("image/jpeg", padded(sampleJPEG()))
		_, _ = fmt.Sscanf(text, `{"id":"%d"`, &photo.ID)
		if photo.ID == 0 {
			_, _ = fmt.Sscanf(text, `{"id":%d`, &photo.ID)
		}
		return err == nil && status == http.StatusCreated
	})
	request := fmt.Sprintf("GET /img/%d/original.jpg HTTP/1.1\r\nHost: x\r\n\r\n", photo.ID)
	return append(b.flood(t, b.front, 100, []byte(request)), b.flood(t, "web-1", 100, []byte(request))...)
}

// sampleJPEG returns a small picture.
func sampleJPEG() []byte {
	var file bytes.Buffer
	_ = jpeg.Encode(&file, image.NewGray(image.Rect(0, 0, 64, 64)), nil) // a buffer accepts every byte
	return file.Bytes()
}

// longHeaders sends unfinished headers of 1 MB.
func (b *bombing) longHeaders(t *testing.T) []net.Conn {
	header := append([]byte("GET / HTTP/1.1\r\nHost: x\r\nX-Bomb: "), bytes.Repeat([]byte("x"), 1<<20)...)
	return append(b.flood(t, b.front, 700, header), b.flood(t, "web-1", 300, header)...)
}

// unfinishedHeaders sends headers within the limit that take as much memory as possible.
func (b *bombing) unfinishedHeaders(t *testing.T) []net.Conn {
	header := []byte("GET / HTTP/1.1\r\nHost: x\r\n")
	for i := 0; len(header) < 8000; i++ {
		header = fmt.Appendf(header, "%x:\r\n", i)
	}
	held := b.flood(t, "web-1", 400, header)
	if b.front != "web-1" {
		held = append(held, b.flood(t, b.front, 700, header)...)
	}
	held = append(held, b.flood(t, "blob-1", 400, header)...)
	for _, n := range b.Status() {
		held = append(held, b.floodAddress(t, n.Admin, 100, header)...)
	}
	return held
}

// unfinishedCommands sends large unfinished commands to the cache, with and without the secret.
func (b *bombing) unfinishedCommands(t *testing.T) []net.Conn {
	const size = 16 << 20
	secret := string(b.secret())
	large := fmt.Appendf(nil, "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$%d\r\n%s", 2*size, make([]byte, size))
	many := fmt.Appendf(nil, "*1048576\r\n%s", bytes.Repeat([]byte("$0\r\n\r\n"), 1_000_000))
	password := fmt.Appendf(nil, "AUTH %s\r\n", secret)
	held := b.flood(t, "cache-1", 40, large)
	held = append(held, b.flood(t, "cache-1", 40, append(bytes.Clone(password), large...))...)
	return append(held, b.flood(t, "cache-1", 40, append(bytes.Clone(password), many...))...)
}

// unfinishedSQL sends unfinished start-up packets to the database, and unfinished messages to the embedded one: to
// PostgreSQL, every process of this machine is a trusted client.
func (b *bombing) unfinishedSQL(t *testing.T) []net.Conn {
	start := binary.BigEndian.AppendUint32(nil, 9_000)
	held := b.flood(t, "db-1", 150, binary.BigEndian.AppendUint32(start, 3<<16))
	long := binary.BigEndian.AppendUint32(nil, 64<<10)
	long = append(binary.BigEndian.AppendUint32(long, 3<<16), make([]byte, 63<<10)...)
	return append(held, b.flood(t, "db-1", 300, long)...)
}

// flood opens connections to a node and sends a message over each, as far as the node takes it.
func (b *bombing) flood(t *testing.T, node string, connections int, message []byte) []net.Conn {
	t.Helper()
	return b.floodAddress(t, b.address(t, node), connections, message)
}

func (b *bombing) floodAddress(t *testing.T, address string, connections int, message []byte) []net.Conn {
	t.Helper()
	var mu sync.Mutex
	var all sync.WaitGroup
	var held []net.Conn
	for range connections {
		all.Go(func() {
			conn, err := net.DialTimeout("tcp", address, time.Second)
			if err != nil {
				return // the node accepts no more
			}
			// The deadline ends a write that the node does not read.
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write(message)
			mu.Lock()
			defer mu.Unlock()
			held = append(held, conn)
		})
	}
	all.Wait()
	return held
}

// othersAreServed waits until a new client gets the page of a photo and an image.
func (b *bombing) othersAreServed(t *testing.T, bomb string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	eventually(t, "another client is served during "+bomb, func() bool {
		for _, path := range []string{photoPath(1), thumbPath(1)} {
			response, err := client.Get(b.Endpoints()[0] + path)
			if err != nil {
				return false
			}
			_, err = io.Copy(io.Discard, response.Body)
			_ = response.Body.Close() // the body was read
			if err != nil || response.StatusCode != http.StatusOK {
				return false
			}
		}
		return true
	})
}

// watchMemory reads the resident memory of the nodes until end is closed. It then sends the largest sum of each host.
func (b *bombing) watchMemory(end <-chan struct{}) <-chan map[string]int64 {
	result := make(chan map[string]int64, 1)
	go func() {
		peaks := map[string]int64{}
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			usage, _ := b.Usage() // an error leaves out a sample
			now := map[string]int64{}
			for _, n := range usage.Nodes {
				now[n.Host] += n.RSSBytes
			}
			for host, bytes := range now {
				peaks[host] = max(peaks[host], bytes)
			}
			select {
			case <-tick.C:
			case <-end:
				result <- peaks
				return
			}
		}
	}()
	return result
}

// compare checks the resident memory of the hosts and that no node restarted.
func (b *bombing) compare(t *testing.T, peaks map[string]int64) {
	t.Helper()
	for _, host := range b.topology.Hosts {
		t.Logf("host %s: at most %d of %d MiB resident", host.Name, peaks[host.Name]>>20, host.MemoryBytes>>20)
		if peaks[host.Name] == 0 || peaks[host.Name] > host.MemoryBytes {
			t.Errorf("host %s: %d bytes resident, want 1 to %d", host.Name, peaks[host.Name], host.MemoryBytes)
		}
	}
	for _, n := range b.Status() {
		if n.Restarts > 0 || n.Cause != "" {
			t.Errorf("node %s restarted %d times: %s", n.Node, n.Restarts, n.Cause)
		}
	}
}
