package blob

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// ClientConfig says which blob node a client talks to, and how patiently.
type ClientConfig struct {
	Address string        // host:port of the node
	Timeout time.Duration // of one call, connecting and bytes included; 0 = 5 s
	// RequestID returns the id of the request that a call is made for, which goes
	// with the call; nil = none does.
	RequestID func(context.Context) string
}

// maxIdle is how many idle connections a client keeps.
const maxIdle = 32

// errNoAnswer: the node did not answer at all, which one that is full does.
var errNoAnswer = errors.New("no answer")

// Client talks to a blob node. Close it when it is no longer needed.
type Client struct {
	config ClientConfig
	http   *http.Client
}

// NewClient returns a client. It connects on the first call.
func NewClient(c ClientConfig) *Client {
	c.Timeout = cmp.Or(c.Timeout, 5*time.Second)
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: time.Second}).DialContext,
		MaxIdleConns:        maxIdle,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     90 * time.Second,
		DisableCompression:  true, // JPEGs do not shrink, and lengths must be those of the bytes
	}
	return &Client{config: c, http: &http.Client{Transport: transport, Timeout: c.Timeout}}
}

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Put stores an object.
func (c *Client) Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error {
	_, err := c.size(ctx, http.MethodPut, id, v, data)
	return err
}

// Get returns an object.
func (c *Client) Get(ctx context.Context, id photos.ID, v photos.Variant) ([]byte, error) {
	response, err := c.call(ctx, http.MethodGet, id, v, nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.ContentLength < 0 || response.ContentLength > MaxBytes {
		return nil, fmt.Errorf("GET blob %d/%s: %w: it has %d bytes, at most %d are read",
			id, v, photos.ErrUnavailable, response.ContentLength, MaxBytes)
	}
	data := make([]byte, response.ContentLength)
	if _, err := io.ReadFull(response.Body, data); err != nil {
		return nil, fmt.Errorf("GET blob %d/%s: %w: %w", id, v, photos.ErrUnavailable, err)
	}
	return data, nil
}

// Head returns the size of an object.
func (c *Client) Head(ctx context.Context, id photos.ID, v photos.Variant) (int64, error) {
	return c.size(ctx, http.MethodHead, id, v, nil)
}

// Delete removes an object; one that is not there is photos.ErrNotFound.
func (c *Client) Delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	_, err := c.size(ctx, http.MethodDelete, id, v, nil)
	return err
}

// size sends a request and returns the length that the answer announces.
func (c *Client) size(ctx context.Context, method string, id photos.ID, v photos.Variant, data []byte) (int64, error) {
	response, err := c.call(ctx, method, id, v, data)
	if err != nil {
		return 0, err
	}
	drain(response)
	return response.ContentLength, nil
}

// call sends a request and returns the response if it is a success.
func (c *Client) call(
	ctx context.Context, method string, id photos.ID, v photos.Variant, data []byte,
) (*http.Response, error) {
	var body io.Reader
	if data != nil {
		body = bytes.NewReader(data)
	}
	url := "http://" + c.config.Address + "/blob/" + strconv.FormatInt(int64(id), 10) + "/" + string(v)
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, fmt.Errorf("%s blob %d/%s: %w", method, id, v, err)
	}
	// Every method here may be repeated. The key, which is not sent when it is
	// empty, tells the transport so: without it a PUT or DELETE on a connection
	// that the node closed when it was restarted would fail for nothing.
	request.Header["Idempotency-Key"] = nil
	if c.config.RequestID != nil {
		if requestID := c.config.RequestID(ctx); requestID != "" {
			request.Header[sut.RequestIDHeader] = []string{requestID}
		}
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%s blob %d/%s: %w: %w: %w", method, id, v, photos.ErrUnavailable, errNoAnswer, err)
	}
	if response.StatusCode < 300 {
		return response, nil
	}
	defer drain(response)
	switch {
	case response.StatusCode == http.StatusNotFound:
		return nil, fmt.Errorf("%s blob %d/%s: %w", method, id, v, photos.ErrNotFound)
	case response.StatusCode >= 500: // 507, a full disk, among them
		err = photos.ErrUnavailable
		return nil, fmt.Errorf("%s blob %d/%s: %w: the node answered %s", method, id, v, err, response.Status)
	}
	return nil, fmt.Errorf("%s blob %d/%s: the node answered %s", method, id, v, response.Status)
}

// drain reads what is left of a short body, so that the connection can be used
// again.
func drain(response *http.Response) {
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10)
	response.Body.Close()
}
