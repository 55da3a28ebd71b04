/*
 * Runs prediction/qupath/predict_region.groovy with stand-ins for the classes of QuPath and DJL that it uses:
 *
 *     groovy qupath_stand_in.groovy SCRIPT MODEL PICTURE SPACING MASK.pgm
 *
 * The picture is the slide, the "model" says class 1 where red is above 128, and what the script traces is written as a
 * mask, 255 for class 1. The script's calls have to exist here by the names that they have in QuPath 0.5 and DJL 0.26.
 */
import javax.imageio.ImageIO

def loader = new GroovyClassLoader(this.class.classLoader)
def sources = [
    "package ai.djl.ndarray.types; enum DataType { UINT8 }",
    "package ai.djl.ndarray.types; class Shape { long[] d; Shape(long... d) { this.d = d }; long get(int i) { d[i] } }",
    """package ai.djl.ndarray; class NDArray { def shape; float[] values; java.nio.ByteBuffer bytes
        def getShape() { shape }; float[] toFloatArray() { values } }""",
    "package ai.djl.ndarray; class NDList { def all; NDList(NDArray... all) { this.all = all }; def get(int i) { all[i] } }",
    "package ai.djl.translate; class NoopTranslator {}",
    """package ai.djl.repository.zoo
    import ai.djl.ndarray.*; import ai.djl.ndarray.types.*
    class Manager { def newSubManager() { new Manager() }; void close() {}
        def create(java.nio.ByteBuffer b, Shape s, DataType t) { new NDArray(shape: s, bytes: b) } }
    class Predictor { void close() {}
        def predict(NDList list) {
            def images = list.get(0); int side = images.shape.get(1); def values = new float[side * side * 2]
            for (int i = 0; i < side * side; i++) {
                values[2 * i + 1] = (images.bytes.get(3 * i) & 0xFF) > 128 ? 1 : 0
                values[2 * i] = 1 - values[2 * i + 1]
            }
            new NDList(new NDArray(shape: new Shape(1, side, side, 2), values: values)) } }
    class Model { def newPredictor() { new Predictor() }; def getNDManager() { new Manager() }; void close() {} }
    class Criteria { static builder() { new Criteria() }; def setTypes(Class a, Class b) { this }
        def optEngine(String n) { this }; def optModelPath(java.nio.file.Path p) { this }
        def optTranslator(def t) { this }; def build() { this }; def loadModel() { new Model() } }""",
    """package qupath.lib.regions; class ImageRegion { int x, y, width, height, z, t
        static createInstance(int x, int y, int w, int h, int z, int t) {
            new ImageRegion(x: x, y: y, width: w, height: h, z: z, t: t) } }""",
    """package qupath.lib.regions; class RegionRequest { double downsample; int x, y, width, height
        static createInstance(String p, double d, int x, int y, int w, int h) {
            new RegionRequest(downsample: d, x: x, y: y, width: w, height: h) }
        static createInstance(String p, double d, ImageRegion r) {
            createInstance(p, d, r.x, r.y, r.width, r.height) } }""",
    "package qupath.lib.regions; class ImagePlane { static getPlane(int z, int t) { 0 } }",
    """package qupath.lib.analysis.images; class SimpleImages { static createFloatImage(float[] d, int w, int h) {
        [data: d, width: w, height: h] } }""",
    """package qupath.lib.analysis.images; class ContourTracing { static Map traced
        static createTracedGeometry(def image, double low, double high, def request) { traced = image
            new Geometry(empty: !image.data.any { it >= low && it <= high }) } }
    class Geometry { boolean empty; boolean isEmpty() { empty }; int getNumGeometries() { 1 }; def getGeometryN(int i) { this } }""",
    "package qupath.lib.roi; class GeometryTools { static geometryToROI(def g, def plane) { 'roi' } }",
    "package qupath.lib.objects.classes; class PathClass { static fromString(String n) { n } }",
    "package qupath.lib.objects; class PathObjects { static createAnnotationObject(def roi, def c) { [roi, c] } }",
    """package stand_in; abstract class Base extends Script { static def server, picture
        def getCurrentServer() { server }; def getSelectedObjects() { [] }
        def addObjects(Collection found) { assert found.every { it[1] == 'Tumor' } } }""",
]
sources.each { loader.parseClass(it) }
def base = loader.loadClass("stand_in.Base")
def picture = ImageIO.read(new File(args[2])), spacing = args[3] as double
base.server = new Expando(
    getPath: { -> "slide" }, getWidth: { -> picture.width }, getHeight: { -> picture.height },
    getPixelCalibration: { -> [hasPixelSizeMicrons: { true }, getAveragedPixelSizeMicrons: { spacing }] as Expando },
    readRegion: { request ->
        assert request.x >= 0 && request.y >= 0
        assert request.x + request.width <= picture.width + 1 && request.y + request.height <= picture.height + 1
        int w = Math.round(request.width / request.downsample), h = Math.round(request.height / request.downsample)
        def part = new java.awt.image.BufferedImage(w, h, 1)
        for (int y = 0; y < h; y++)
            for (int x = 0; x < w; x++)
                part.setRGB(x, y, picture.getRGB(Math.min(picture.width - 1, (int) (request.x + x * request.downsample)),
                                                 Math.min(picture.height - 1, (int) (request.y + y * request.downsample))))
        part })
def configuration = new org.codehaus.groovy.control.CompilerConfiguration(scriptBaseClass: "stand_in.Base")
def shell = new GroovyShell(loader, new Binding(args: [args[1]] as String[]), configuration)
shell.evaluate(new File(args[0]))
def mask = loader.loadClass("qupath.lib.analysis.images.ContourTracing").traced
new File(args[4]).withOutputStream { out ->
    out << "P5 ${mask.width} ${mask.height} 255\n".bytes
    out.write(mask.data.collect { (byte) (it * 255) } as byte[])
}
